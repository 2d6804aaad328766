//! The programs accept what the deployment files and the pages contain. The tests search for the files, so a
//! file that is added to `deploy/` is checked too. `hosts` and `tests/scripts/packages.sh` run these files.
//! The tests here find faults that such a run does not show, or shows late.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use e2e::{Lab, scenario};
use futures::FutureExt;
use parse_dockerfile::{Dockerfile, Instruction, Source};
use serde_json::Value;

use crate::support::tried;

/// The repository's folder.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package is in the repository")
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The files below this folder whose names have one of these endings.
fn files(folder: &str, endings: &[&str]) -> Vec<PathBuf> {
    let mut found = vec![];
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
            let path = entry.expect("the folder can be read").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ending| endings.iter().any(|one| *one == ending)) {
                found.push(path.strip_prefix(root()).expect("it is in the repository").to_owned());
            }
        }
    }
    found.sort();
    found
}

/// The documents of every YAML file.
fn yaml() -> Vec<(PathBuf, Value)> {
    let files = files("deploy", &["yaml", "yml"]);
    assert!(!files.is_empty(), "nothing was found");
    let documents = |path: &PathBuf| -> Vec<(PathBuf, Value)> {
        let documents: Vec<Value> = serde_saphyr::from_multiple(&read(path))
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        documents.into_iter().map(|document| (path.clone(), document)).collect()
    };
    files.iter().flat_map(documents).collect()
}

/// The settings of a systemd unit in order, each as `Section.Name` and its value.
fn unit(text: &str) -> Vec<(String, String)> {
    let mut section = String::new();
    let mut settings = vec![];
    for line in text.replace("\\\n", " ").lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = name.to_owned();
        } else if !line.is_empty() && !line.starts_with(['#', ';']) {
            let (name, value) = line.split_once('=').unwrap_or_else(|| panic!("`{line}` sets nothing"));
            assert!(!section.is_empty(), "`{line}` is in no section");
            settings.push((format!("{section}.{}", name.trim()), value.trim().to_owned()));
        }
    }
    settings
}

/// The systemd units.
fn units() -> Vec<PathBuf> {
    files("deploy", &["service", "socket", "target", "timer"])
}

/// The runner's commands. A container that calls one of them runs the runner, so the image's name does not
/// matter.
const COMMANDS: [&str; 11] = [
    "bootstrap",
    "deregister",
    "failover",
    "join",
    "leave",
    "probe",
    "register",
    "roll",
    "rotate",
    "status",
    "verify",
];

/// A call of the runner, in a file or on a page.
#[derive(Debug, Default)]
struct Call {
    file: PathBuf,
    args: Vec<String>,
    env: Vec<(String, String)>,
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: sentinel-runner {} {:?}", self.file.display(), self.args.join(" "), self.env)
    }
}

/// The runner's call in a command line, its words without quotes. `None` if the line does not call the
/// runner.
fn call(file: &Path, line: &str) -> Option<Call> {
    let mut words = line.split_whitespace().map(|word| word.trim_matches(['"', '\'']).to_owned()).peekable();
    let mut env = vec![];
    while let Some(word) = words.peek() {
        // `env`, `exec` and systemd's prefixes may come before the program.
        let word = word.trim_start_matches(['$', '@', '-', ':', '+', '!']);
        match word.split_once('=') {
            _ if word.ends_with("sentinel-runner") => {
                let args = words.skip(1).take_while(|word| !word.starts_with(['|', '&', ';', '>', '#']));
                return Some(Call { file: file.to_owned(), args: args.collect(), env });
            }
            Some((name, value)) => env.push((name.to_owned(), value.to_owned())),
            None if ["", "env", "exec", "sudo", "-"].contains(&word) => {}
            None => return None,
        }
        words.next();
    }
    None
}

/// The words of a list or of a line.
fn words(value: Option<&Value>) -> Vec<String> {
    match value {
        Some(Value::Array(words)) => words.iter().map(text).collect(),
        Some(Value::String(line)) => line.split_whitespace().map(str::to_owned).collect(),
        _ => vec![],
    }
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Environment variables as Kubernetes lists them, as Compose lists them, or as Compose maps them. A variable
/// whose value comes from elsewhere gets the value `$`.
fn env(value: Option<&Value>) -> Vec<(String, String)> {
    match value {
        Some(Value::Object(map)) => map.iter().map(|(name, value)| (name.clone(), text(value))).collect(),
        Some(Value::Array(list)) => list
            .iter()
            .map(|entry| match entry {
                Value::String(pair) => {
                    let (name, value) = pair.split_once('=').unwrap_or((pair, "$"));
                    (name.to_owned(), value.to_owned())
                }
                entry => (text(&entry["name"]), entry.get("value").map_or_else(|| "$".into(), text)),
            })
            .collect(),
        _ => vec![],
    }
}

/// The runner's calls in containers: the container's command, or a line of a shell script.
fn calls_of_containers(file: &Path, value: &Value, calls: &mut Vec<Call>) {
    match value {
        Value::Object(map) => {
            let mut args =
                [words(map.get("entrypoint")), words(map.get("command")), words(map.get("args"))].concat();
            let env = [env(map.get("env")), env(map.get("environment"))].concat();
            if args.first().is_some_and(|word| word.ends_with("sentinel-runner")) {
                args.remove(0);
                calls.push(Call { file: file.to_owned(), args, env });
            } else if args.first().is_some_and(|word| COMMANDS.contains(&&**word)) {
                calls.push(Call { file: file.to_owned(), args, env });
            }
            map.values().for_each(|value| calls_of_containers(file, value, calls));
        }
        Value::Array(list) => list.iter().for_each(|value| calls_of_containers(file, value, calls)),
        Value::String(script) if script.lines().count() > 1 => {
            calls.extend(script.replace("\\\n", " ").lines().filter_map(|line| call(file, line)));
        }
        _ => {}
    }
}

/// The runner's calls in a page's code blocks.
fn calls_of_page(path: &Path) -> Vec<Call> {
    let page = read(path).replace("\\\n", " ");
    let mut in_block = false;
    let lines = page.lines().filter(|line| {
        let fence = line.trim_start().starts_with("```");
        in_block ^= fence;
        in_block && !fence
    });
    lines.filter_map(|line| call(path, line)).collect()
}

/// Every call in the deployment files and on the pages.
fn calls() -> Vec<Call> {
    let mut calls = vec![];
    for (path, document) in yaml() {
        calls_of_containers(&path, &document, &mut calls);
    }
    for path in units() {
        let settings = unit(&read(&path));
        let set = |name: &str| -> Vec<&String> {
            settings.iter().filter(|(set, _)| set == name).map(|(_, value)| value).collect()
        };
        let env: Vec<(String, String)> = set("Service.Environment")
            .iter()
            .flat_map(|line| line.split_whitespace())
            .filter_map(|pair| pair.trim_matches('"').split_once('='))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        let lines = ["ExecStart", "ExecStartPre", "ExecStartPost", "ExecStop", "ExecStopPost", "ExecReload"];
        for line in lines.iter().flat_map(|name| set(&format!("Service.{name}"))) {
            calls.extend(call(&path, line).map(|call| Call { env: env.clone(), ..call }));
        }
    }
    let mut pages = files("docs", &["md"]);
    pages.push("README.md".into());
    calls.extend(pages.iter().flat_map(|path| calls_of_page(path)));
    for path in files("deploy", &["sh"]) {
        calls.extend(read(&path).replace("\\\n", " ").lines().filter_map(|line| call(&path, line)));
    }
    calls
}

/// Whether this is a placeholder, which a person, a shell, Compose or systemd replaces before use.
fn is_open(value: &str) -> bool {
    value.contains(['$', '%', '<', '…'])
}

/// The flag of every environment variable of a command, from the command's help: `--broker <URL>` … `[env:
/// BROKER_URL=]`.
fn flags_by_variable(help: &str) -> BTreeMap<String, String> {
    let mut flag = String::new();
    let mut flags = BTreeMap::new();
    for line in help.lines() {
        let named = line.trim_start().starts_with('-').then(|| line.find("--")).flatten();
        if let Some(start) = named {
            flag = line[start..].split([' ', ',']).next().unwrap_or_default().to_owned();
        }
        for variable in line.split("[env: ").skip(1) {
            let name = variable.split(['=', ']']).next().unwrap_or_default();
            flags.insert(name.to_owned(), flag.clone());
        }
    }
    flags
}

/// The runner's help for these words. The runner checks all words before `--help`, and refuses what it does
/// not take.
async fn help(lab: &Lab, words: &[String], call: &Call) -> Result<String> {
    let asked = words.iter().map(String::as_str).chain(["--help"]);
    let ran = lab.runner(asked).run(Duration::from_secs(10)).await?;
    assert!(ran.code == Some(0), "{call}: {ran}");
    Ok(ran.stdout)
}

async fn check(lab: &Lab, call: &Call) -> Result<()> {
    // The words after `--` are another program's.
    let own: Vec<String> = call.args.iter().take_while(|word| *word != "--").cloned().collect();
    let commands: Vec<String> =
        own.iter().take_while(|word| !word.starts_with('-') && !is_open(word)).cloned().collect();
    let page = help(lab, &commands, call).await?;
    let flags = flags_by_variable(&page);

    // If the value is a placeholder, only the flag's name can be checked.
    let mut closed = vec![];
    let mut words = own.into_iter().peekable();
    while let Some(word) = words.next() {
        let flag = word.split_once('=').map_or(&*word, |(flag, _)| flag).to_owned();
        if flag.starts_with("--") {
            assert!(
                page.split([' ', ',', '\n']).any(|word| word == flag),
                "{call}: there is no {flag}:\n{page}"
            );
        }
        let value_is_open = !word.contains('=') && words.peek().is_some_and(|next| is_open(next));
        if is_open(&word) {
            continue;
        } else if flag.starts_with('-') && value_is_open {
            words.next();
        } else {
            closed.push(word);
        }
    }
    help(lab, &closed, call).await?;

    let is_used = |name: &str| call.args.iter().any(|word| word.contains(&format!("$({name})")));
    for (name, value) in &call.env {
        // Leaves out the variables of other programs in the same unit or container, and those that the
        // arguments are made of.
        if !name.starts_with("SPIN_")
            && !is_used(name)
            && !["PATH", "HOME", "SSL_CERT_FILE", "NO_COLOR", "TERM"].contains(&&**name)
        {
            let flag =
                flags.get(name).with_context(|| format!("{call}: there is no variable {name}:\n{page}"))?;
            if !is_open(value) && !value.is_empty() && page.contains(&format!("{flag} <")) {
                help(lab, &[&commands[..], &[flag.clone(), value.clone()]].concat(), call).await?;
            }
        }
    }
    Ok(())
}

#[test]
fn the_runner_takes_every_flag_and_variable_that_it_is_given() {
    scenario(async |lab| {
        let calls = calls();
        for part in ["deploy/kubernetes/nodes/redis.yaml", "docs/deploy.md", "README.md"] {
            assert!(calls.iter().any(|call| call.file == Path::new(part)), "{part}: none of {calls:?}");
        }
        for path in units().iter().filter(|path| read(path).contains("/sentinel-runner")) {
            assert!(calls.iter().any(|call| call.file == *path), "{}: {calls:?}", path.display());
        }
        for call in &calls {
            check(lab, call).await?;
        }
        Ok(())
    });
}

#[test]
fn a_flag_or_a_value_that_the_runner_does_not_take_is_found() {
    scenario(async |lab| {
        for line in [
            "sentinel-runner bootstrap --brocker http://b",
            "sentinel-runner bootstrap --broker http://b --timeout=soon",
            "sentinel-runner bootstrap --broker $URL --allowed=$NETWORK",
            "BROKER=http://b sentinel-runner bootstrap",
            "EXPECTED_REDIS=many sentinel-runner bootstrap --broker http://b",
            "sentinel-runner bootstrp --broker http://b",
        ] {
            let call = call(Path::new("a file"), line).context("it is one of the runner")?;
            let checked = AssertUnwindSafe(check(lab, &call));
            let found = checked.catch_unwind().await;
            assert!(!matches!(found, Ok(Ok(()))), "{line}: is taken");
        }
        Ok(())
    });
}

#[test]
fn the_manifest_has_every_variable_that_is_set() {
    let manifest: toml::Table = read("spin.toml").parse().expect("TOML");
    let declared: BTreeSet<&String> = manifest["variables"].as_table().expect("a table").keys().collect();
    let mut set = BTreeSet::new();
    for (_, document) in yaml() {
        if document["kind"] == "SpinApp" {
            set.extend(env(document["spec"].get("variables")).into_iter().map(|(name, _)| name));
        }
    }
    assert!(set.len() >= 3, "{set:?}");
    let mut pages = files("deploy", &["yaml", "yml", "service", "sh", "env", "toml"]);
    pages.extend(files("docs", &["md"]));
    pages.push("README.md".into());
    for page in pages {
        for rest in read(&page).split("SPIN_VARIABLE_").skip(1) {
            let name: String = rest.chars().take_while(|c| c.is_ascii_uppercase() || *c == '_').collect();
            set.insert(name.to_lowercase());
        }
    }
    // In prose, the prefix may occur without a name after it.
    for name in set.iter().filter(|name| !name.is_empty()) {
        assert!(declared.contains(name), "there is no variable `{name}`: {declared:?}");
    }
}

#[test]
fn the_store_in_redis_is_what_the_component_opens() {
    for path in files("deploy", &["toml"]) {
        read(&path).parse::<toml::Table>().unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
    let config: toml::Table = read("deploy/runtime-config.redis.toml").parse().expect("TOML");
    let store = &config["key_value_store"]["default"];
    assert_eq!(store["type"].as_str(), Some("redis"));
    assert!(store["url"].as_str().is_some_and(|url| url.starts_with("redis://")), "{store:?}");
    let manifest: toml::Table = read("spin.toml").parse().expect("TOML");
    let stores = manifest["component"]["broker-fn"]["key_value_stores"].as_array().expect("a list");
    assert_eq!(stores.iter().filter_map(toml::Value::as_str).collect::<Vec<_>>(), ["default"]);
}

/// All values of this key, at any depth.
fn all<'a>(value: &'a Value, key: &str, found: &mut Vec<&'a Value>) {
    match value {
        Value::Object(map) => {
            found.extend(map.get(key));
            map.values().for_each(|value| all(value, key, found));
        }
        Value::Array(list) => list.iter().for_each(|value| all(value, key, found)),
        _ => {}
    }
}

/// The files that a pod's container mounts from its Secret.
fn mounted(pod: &Value, container: &Value) -> BTreeSet<String> {
    let mut files = BTreeSet::new();
    for mount in container["volumeMounts"].as_array().into_iter().flatten() {
        let volumes = pod["volumes"].as_array().into_iter().flatten();
        for volume in volumes.filter(|volume| volume["name"] == mount["name"]) {
            for item in volume["secret"]["items"].as_array().into_iter().flatten() {
                files.insert(format!("{}/{}", text(&mount["mountPath"]), text(&item["path"])));
            }
        }
    }
    files
}

/// The objects of deploy/kubernetes.
fn objects() -> Vec<Value> {
    let documents = yaml().into_iter().map(|(_, document)| document);
    documents
        .filter(|document| document.get("apiVersion").is_some() && document["kind"] != "Kustomization")
        .collect()
}

#[test]
fn kubernetes_asks_for_every_key_of_the_documented_secret_and_no_other() {
    let page = read("docs/deploy.md");
    let literals = page.split("--from-literal=").skip(1);
    let documented: BTreeSet<String> =
        literals.filter_map(|literal| Some(literal.split_once('=')?.0.to_owned())).collect();
    let (objects, mut references, mut volumes) = (objects(), vec![], vec![]);
    for object in &objects {
        all(object, "secretKeyRef", &mut references);
        all(object, "secret", &mut volumes);
    }
    let mut used = BTreeSet::new();
    for reference in references {
        assert_eq!(reference["name"], "sentinel-broker");
        used.insert(text(&reference["key"]));
    }
    for volume in volumes {
        assert_eq!(volume["secretName"], "sentinel-broker");
        used.extend(volume["items"].as_array().expect("items").iter().map(|item| text(&item["key"])));
    }
    assert_eq!(used, documented);
}

#[test]
fn every_pod_is_unprivileged_and_mounts_the_files_that_it_reads() {
    let mut checked = 0;
    for object in objects() {
        let (name, pod) = (text_of_kind(&object), &object["spec"]["template"]["spec"]);
        for container in pod["containers"].as_array().into_iter().flatten() {
            assert_eq!(pod["securityContext"]["runAsNonRoot"], true, "{name}");
            assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true, "{name}");
            let files = mounted(pod, container);
            for word in words(container.get("args")) {
                let path = word.split_once('=').map_or(&*word, |(_, value)| value);
                let is_there = !path.starts_with("/run/") || files.contains(path);
                assert!(is_there, "{name}: `{word}` is none of {files:?}");
            }
            checked += 1;
        }
    }
    assert!(checked >= 5, "{checked}");
}

#[test]
fn every_selector_selects_a_pod_and_every_named_container_is_there() {
    let objects = objects();
    let name_of = |labels: &Value| labels.get("app.kubernetes.io/name").map(text);
    let mut labelled = BTreeSet::new();
    for object in &objects {
        let (name, template) = (text_of_kind(object), &object["spec"]["template"]);
        let Some(containers) = template["spec"]["containers"].as_array() else { continue };
        let labels = &template["metadata"]["labels"];
        labelled.extend(name_of(labels));
        assert_eq!(labels["app.kubernetes.io/part-of"], "sentinel-broker", "{name}: no other may connect");
        let containers: Vec<String> = containers.iter().map(|one| text(&one["name"])).collect();
        for rule in object["spec"]["podFailurePolicy"]["rules"].as_array().into_iter().flatten() {
            assert_eq!(
                template["spec"]["restartPolicy"], "Never",
                "{name}: a policy for failed pods asks for it"
            );
            assert!(containers.contains(&text(&rule["onExitCodes"]["containerName"])), "{name}: {rule}");
        }
    }
    let mut checked = 0;
    for object in &objects {
        let (name, spec) = (text_of_kind(object), &object["spec"]);
        let kinds = ["Service", "PodDisruptionBudget", "NetworkPolicy", "Deployment", "StatefulSet"];
        if !kinds.contains(&&*text(&object["kind"])) {
            continue;
        }
        let selectors =
            [&spec["selector"], &spec["selector"]["matchLabels"], &spec["podSelector"]["matchLabels"]];
        let selected = selectors.into_iter().find_map(name_of).expect("it selects by a name");
        assert!(labelled.contains(&selected), "{name} selects {selected}, which is none of {labelled:?}");
        // The pods' names are below the name of this Service.
        if object["kind"] == "StatefulSet" {
            let service =
                |one: &&Value| one["kind"] == "Service" && one["metadata"]["name"] == spec["serviceName"];
            assert!(objects.iter().any(|one| service(&one)), "{name}: {}", spec["serviceName"]);
        }
        let own = name_of(&spec["template"]["metadata"]["labels"]);
        assert!(own.is_none_or(|own| own == selected), "{name} selects {selected}");
        checked += 1;
    }
    assert!(checked >= 12, "{checked}");
}

#[test]
fn kubernetes_objects_follow_the_schemas_of_the_api() {
    let validate = root().join("target/kubernetes-validate/bin/kubernetes-validate");
    if !validate.exists() {
        tried("not tried here: deploy/kubernetes against the schemas of the API (make test-hosts)");
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let mut checked = 0;
    for (path, document) in yaml() {
        let api = text(&document["apiVersion"]);
        // The validator has no schema for these kinds.
        if document.get("apiVersion").is_none()
            || api.starts_with("core.spinkube.dev")
            || api.starts_with("kustomize")
        {
            continue;
        }
        let file = folder.path().join(format!("{checked}.json"));
        fs::write(&file, document.to_string()).expect("it can be written");
        let output = Command::new(&validate).arg("--strict").arg(&file).output().expect("it starts");
        let said =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {said}\n{document}", path.display());
        checked += 1;
    }
    assert!(checked >= 12, "{checked}");
}

#[test]
fn kustomize_makes_one_system_of_the_base() {
    let kustomize = |folder: &str| {
        let output = Command::new("kubectl").args(["kustomize", folder]).current_dir(root()).output();
        output.ok().map(|output| {
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let text = String::from_utf8(output.stdout).expect("text");
            let documents: Vec<Value> = serde_saphyr::from_multiple(&text).expect("YAML");
            documents.into_iter().map(|one| text_of_kind(&one)).collect::<Vec<String>>()
        })
    };
    let (Some(plain), Some(operator)) =
        (kustomize("deploy/kubernetes"), kustomize("deploy/kubernetes/spinkube"))
    else {
        tried("not tried here: kustomize (there is no kubectl)");
        return;
    };
    let nodes = [
        "StatefulSet redis",
        "StatefulSet sentinel",
        "Job sentinel-runner",
        "Service redis",
        "Service sentinel",
    ];
    for (made, broker, other) in [
        (&plain, "Deployment sentinel-broker", "SpinApp sentinel-broker"),
        (&operator, "SpinApp sentinel-broker", "Deployment sentinel-broker"),
    ] {
        for one in nodes.iter().chain([&broker]) {
            assert!(made.contains(&(*one).to_owned()), "{one}: {made:?}");
        }
        assert!(!made.contains(&other.to_owned()), "{made:?}");
    }
}

fn text_of_kind(document: &Value) -> String {
    format!("{} {}", text(&document["kind"]), text(&document["metadata"]["name"]))
}

#[test]
fn systemd_restarts_nodes_and_the_broker_without_limit() {
    let mut nodes = 0;
    for path in units() {
        let settings = unit(&read(&path));
        let is = |name: &str, value: &str| settings.contains(&(name.to_owned(), value.to_owned()));
        if is("Service.Restart", "always") {
            nodes += 1;
            // By default systemd gives up after five starts within ten seconds, and a node that waits for its
            // network may start that often.
            assert!(is("Unit.StartLimitIntervalSec", "0"), "{}", path.display());
        }
    }
    assert_eq!(nodes, 3, "a Redis server, a Sentinel, and the broker");
}

/// The version of Rust that everything here is built with.
fn channel() -> String {
    let toolchain: toml::Table = read("rust-toolchain.toml").parse().expect("TOML");
    toolchain["toolchain"]["channel"].as_str().expect("a version").to_owned()
}

#[test]
fn the_image_contains_what_its_first_stage_makes_and_runs_as_nobody() {
    let source = read("Containerfile");
    let file: Dockerfile<'_> = parse_dockerfile::parse(&source).unwrap_or_else(|error| panic!("{error}"));
    let stages: Vec<_> = file.stages().collect();
    let [first, image] = &stages[..] else { panic!("{} stages", stages.len()) };
    let (build, _) = source.split_once("\nFROM scratch\n").expect("an image with nothing else");
    assert!(build.contains(&format!("\nENV RUSTUP_TOOLCHAIN={}\n", channel())), "another toolchain");
    assert!(build.contains(" cargo build --locked --release -p runner --target"), "another command");
    let (mut users, mut entrypoints, mut copied) = (0, 0, vec![]);
    for instruction in image.instructions {
        match instruction {
            Instruction::Copy(copy) => {
                let from = copy.options.iter().find(|flag| flag.name.value == "from");
                let from = from.and_then(|flag| flag.value.as_ref()).map(|stage| &*stage.value);
                let stage = first.from.as_.as_ref().map(|(_, name)| &*name.value);
                assert!(from.is_some() && from == stage, "{from:?}");
                copied.push(copy.dest.value.to_string());
                for one in &copy.src {
                    let Source::Path(path) = one else { panic!("a file of its own") };
                    let made = match &*path.value {
                        "/etc/ssl/certs/ca-certificates.crt" => build.contains(" ca-certificates "),
                        path => build.contains(&format!(" {path}\n")),
                    };
                    assert!(made, "nothing makes `{}`", path.value);
                }
            }
            Instruction::User(user) => {
                // Kubernetes' runAsNonRoot needs numbers.
                let is_nobody = |id: &str| id.parse::<u32>().is_ok_and(|id| id > 0);
                assert!(user.arguments.value.split(':').all(is_nobody), "{}", user.arguments.value);
                users += 1;
            }
            Instruction::Entrypoint(entrypoint) => {
                let parse_dockerfile::Command::Exec(words) = &entrypoint.arguments else { panic!("a shell") };
                let words: Vec<&str> = words.value.iter().map(|word| &*word.value).collect();
                assert_eq!(words, ["/sentinel-runner"], "there is no shell, and no path to look in");
                assert!(copied.iter().any(|one| one == words[0]), "{copied:?}");
                entrypoints += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((users, entrypoints), (1, 1));
}

#[test]
fn every_image_uses_this_toolchain_and_its_own_stages() {
    let channel = channel();
    let mut paths = files("deploy", &["Dockerfile", "Containerfile"]);
    paths.push("Containerfile".into());
    for path in paths {
        let source = read(&path);
        let file: Dockerfile<'_> =
            parse_dockerfile::parse(&source).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        for stage in file.stages() {
            let image = &stage.from.image.value;
            if let Some((_, tag)) = image.split_once("rust:") {
                let version = tag.split('-').next().unwrap_or_default();
                assert!(channel.starts_with(version), "{}: {image}, not {channel}", path.display());
            }
            for instruction in stage.instructions {
                let Instruction::Copy(copy) = instruction else { continue };
                let from = copy.options.iter().find(|flag| flag.name.value == "from");
                if let Some(from) = from.and_then(|flag| flag.value.as_ref()) {
                    assert!(file.stage(&from.value).is_some(), "{}: no {}", path.display(), from.value);
                }
            }
        }
    }
}

#[test]
fn every_file_that_a_page_or_a_script_builds_from_is_there() {
    let mut pages = files("docs", &["md"]);
    pages.extend(files("deploy", &["yaml", "yml", "sh"]));
    pages.extend(["README.md", "Containerfile"].map(PathBuf::from));
    let mut built = 0;
    for page in pages {
        let source = read(&page);
        let words: Vec<&str> = source.split_whitespace().collect();
        for pair in words
            .windows(2)
            .filter(|pair| pair[0] == "-f" && (pair[1].starts_with("deploy/") || pair[1].ends_with("file")))
        {
            assert!(root().join(pair[1]).is_file(), "{}: there is no {}", page.display(), pair[1]);
            built += 1;
        }
        // A page describes this version, so an image of another version would be wrong there.
        for image in ["/sentinel-runner:", "/sentinel-broker:"] {
            for rest in source.split(image).skip(1) {
                let tag = rest.split(['"', '\'', ' ', '\n', '`']).next().unwrap_or_default();
                assert!(is_open(tag) || tag == env!("CARGO_PKG_VERSION"), "{}: {image}{tag}", page.display());
            }
        }
    }
    for (path, document) in yaml() {
        let mut builds = Vec::new();
        all(&document, "build", &mut builds);
        for build in builds {
            let folder = root().join(path.parent().expect("a folder")).join(text(&build["context"]));
            assert!(folder.join(text(&build["dockerfile"])).is_file(), "{}: {build}", path.display());
            built += 1;
        }
    }
    assert!(built > 0, "none was found");
}

#[test]
fn systemd_takes_every_unit() {
    let here = tempfile::tempdir().expect("a folder");
    let mut copies = vec![];
    for path in units() {
        let mut text = read(&path);
        for (name, value) in unit(&text) {
            if name.starts_with("Service.Exec") {
                // The unit's program may not be installed here. Any program will do, so this test itself
                // stands in for it.
                let program = value.split_whitespace().next().unwrap_or_default();
                let program = program.trim_start_matches(['@', '-', ':', '+', '!']);
                assert!(program.starts_with('/'), "{}: `{program}` is no path", path.display());
                if !Path::new(program).exists() {
                    text = text
                        .replace(program, &std::env::current_exe().expect("it runs").display().to_string());
                }
            }
        }
        let copy = here.path().join(path.file_name().expect("a file"));
        fs::write(&copy, text).expect("it can be written");
        copies.push(copy);
    }
    if copies.is_empty() {
        return;
    }
    match Command::new("systemd-analyze").args(["verify", "--man=no"]).args(&copies).output() {
        Ok(ran) => {
            let said = String::from_utf8_lossy(&ran.stderr);
            // What systemd-analyze prints about the machine's own units does not matter.
            let about_ours =
                |line: &&str| copies.iter().any(|copy| line.contains(&*copy.display().to_string()));
            let wrong: Vec<&str> = said.lines().filter(about_ours).collect();
            assert!(wrong.is_empty() && ran.status.success(), "{said}");
        }
        Err(error) => eprintln!("not checked by systemd-analyze: {error}"),
    }
}

/// The anchors that Markdown makes of a page's headings.
fn anchors(page: &Path) -> Vec<String> {
    let text = read(page);
    let outside = text.split("```").step_by(2).flat_map(str::lines).filter(|line| line.starts_with('#'));
    let anchor = |line: &str| {
        let heading = line.trim_start_matches('#').trim().to_lowercase();
        let kept = heading.chars().filter(|char| char.is_alphanumeric() || [' ', '-', '_'].contains(char));
        kept.map(|char| if char == ' ' { '-' } else { char }).collect()
    };
    outside.map(anchor).collect()
}

#[test]
fn every_link_of_a_page_leads_somewhere() {
    let mut pages = files("docs", &["md"]);
    pages.extend(["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"].map(PathBuf::from));
    let mut checked = 0;
    for page in &pages {
        let text = read(page);
        for rest in text.split("](").skip(1) {
            let link = rest.split(')').next().unwrap_or_default();
            if link.contains("://") {
                continue;
            }
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let path = if path.is_empty() {
                page.clone()
            } else {
                page.parent().unwrap_or(Path::new("")).join(path)
            };
            assert!(root().join(&path).exists(), "{}: there is no {link}", page.display());
            let found = anchor.is_empty() || anchors(&path).iter().any(|known| known == anchor);
            assert!(found, "{}: {link}: there is no such heading", page.display());
            checked += 1;
        }
    }
    assert!(checked > 50, "{checked} links were found");
}
