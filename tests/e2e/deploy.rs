//! What the deployment files and their page say, the programs take.

use std::fs;
use std::path::Path;
use std::time::Duration;

use e2e::scenario;

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The flags in a text, without their values.
fn flags(text: &str) -> impl Iterator<Item = &str> {
    let words = text.split_whitespace().filter(|word| word.starts_with("--"));
    words.map(|word| word.split_once('=').map_or(word, |(flag, _)| flag))
}

#[test]
fn the_runner_has_every_flag_that_it_is_given() {
    scenario(async |lab| {
        let help = lab.runner(["bootstrap", "--help"]).run(Duration::from_secs(10)).await?.stdout;
        let page = read("docs/deploy.md");
        let job = read("deploy/spinkube.yaml");
        let (_, job) = job.split_once("kind: Job").expect("the runner's Job");
        let commands = page.lines().filter(|line| line.starts_with("sentinel-runner bootstrap "));
        let given: Vec<&str> = commands.chain([job]).flat_map(flags).collect();
        assert!(given.len() > 10, "{given:?}");
        for flag in given {
            assert!(help.split_whitespace().any(|word| word == flag), "the runner has no {flag}:\n{help}");
        }
        Ok(())
    });
}

#[test]
fn the_manifest_has_every_variable_that_is_set() {
    let manifest = read("spin.toml");
    let (page, app) = (read("docs/deploy.md"), read("deploy/spinkube.yaml"));
    let (_, app) = app.split_once("  variables:\n").expect("the SpinApp's variables");
    let (app, _) = app.split_once("---").expect("something follows");
    let in_app = app.lines().filter_map(|line| line.strip_prefix("    - name: ")).map(str::to_owned);
    let in_page = page.split("SPIN_VARIABLE_").skip(1).map(|rest| {
        let name = rest.split('=').next().unwrap_or_default();
        name.to_lowercase()
    });
    let set: Vec<String> = in_app.chain(in_page.filter(|name| !name.contains('`'))).collect();
    assert!(set.len() >= 4, "{set:?}");
    for name in set {
        assert!(manifest.contains(&format!("\n{name} = {{ default")), "there is no variable `{name}`");
    }
}

#[test]
fn the_store_in_redis_is_what_the_component_opens() {
    let config: toml::Table = read("deploy/runtime-config.redis.toml").parse().expect("TOML");
    let store = &config["key_value_store"]["default"];
    assert_eq!(store["type"].as_str(), Some("redis"));
    assert!(store["url"].as_str().is_some_and(|url| url.starts_with("redis://")), "{store:?}");
    assert!(read("spin.toml").contains(r#"key_value_stores = ["default"]"#));
}
