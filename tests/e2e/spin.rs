//! How tests find Spin and start applications in it. A script with Spin's command line, and the local host
//! behind it, stands in for Spin, so that the tests work once there is a Spin.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::spin::{Search, Spin};
use e2e::{Broker, Lab, eventually, scenario};
use serde_json::Value;
use tokio::net::TcpStream;

/// The part of `spin up` that the tests use. As in Spin, another process serves, and it outlives the process
/// that was started.
const UP: &str = r#"
shift
while [ $# -gt 0 ]; do
    case "$1" in
        --from) manifest=$2 ;;
        --listen) listen=$2 ;;
        --state-dir) state=$2 ;;
        --runtime-config-file) url=$(sed -n 's/^url = "\(.*\)"$/\1/p' "$2") ;;
        *) echo "unknown: $1" >&2; exit 2 ;;
    esac
    shift 2
done
mkdir -p "$state"
set -- --listen "$listen" --store "${url:-$state/sqlite_key_value.db}"
set -- "$@" --component "$(sed -n 's/^source = "\(.*\)"$/\1/p' "$manifest")"
for variable in $(env | sed -n 's/^SPIN_VARIABLE_//p'); do
    set -- "$@" --variable "$(echo "${variable%%=*}" | tr A-Z a-z)=${variable#*=}"
done
"$LOCAL_HOST" "$@" | while read -r line; do
    printf '\nServing %s\nAvailable Routes:\n' "${line#listening on }"
done
"#;

/// Writes a program `spin` that prints this version, and otherwise runs the script `up`.
fn program(folder: &Path, version: &str, up: &str) -> Result<PathBuf> {
    fs::create_dir_all(folder)?;
    let path = folder.join("spin");
    let host = env!("CARGO_BIN_EXE_local-host");
    let text = format!(
        "#!/bin/sh\nif [ \"$1\" = --version ]; then echo '{version}'; exit; fi\nLOCAL_HOST='{host}'\n{up}"
    );
    fs::write(&path, text)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

fn found(lab: &Lab, up: &str) -> Result<Spin> {
    let program = program(lab.dir(), "spin 4.1.0 (0123456 2026-08-21)", up)?;
    match Spin::search_by(Some(program.into()), None)? {
        Search::Found(spin) => Ok(spin),
        Search::None(why) => anyhow::bail!("it is not taken: {why}"),
    }
}

#[test]
fn an_application_in_spin_gets_its_variables_and_its_store() {
    scenario(async |lab| {
        let spin = found(lab, UP)?;
        assert_eq!(spin.version(), "4.1.0");
        let redis = lab.redis().start().await?;
        for store in [":memory:", &format!("redis://{}", redis.addr())] {
            let builder = Broker::builder().on_spin(&spin).store(store).variable("expected_redis", 7);
            let broker = lab.broker(builder)?;
            let reply = broker.post("/redis").from([127, 0, 0, 2]).send().await?;
            assert_eq!(reply.status, 201, "{reply}");
            let roster: Value = broker.get("/").send().await?.json()?;
            assert_eq!(roster["redis"][0]["host"], "127.0.0.2");
            assert_eq!(roster["missing"]["redis"], 6);

            let addr = broker.addr();
            drop(broker);
            eventually(Duration::from_secs(10), async || {
                ensure!(TcpStream::connect(addr).await.is_err(), "a process still listens at {addr}");
                Ok(())
            })
            .await?;
        }
        let keys: u64 = redis.query(&["DBSIZE"]).await?;
        assert!(keys > 0, "the second was to keep its store in Redis");
        Ok(())
    });
}

#[test]
fn an_application_that_does_not_start_shows_its_output() {
    scenario(async |lab| {
        let spin = found(lab, "echo 'no such luck' >&2; exit 3")?;
        let error = lab.broker(Broker::builder().on_spin(&spin)).expect_err("it ended");
        let error = format!("{error:#}");
        assert!(error.contains("no such luck") && error.contains("exit status: 3"), "{error}");
        Ok(())
    });
}

#[test]
fn what_fails_in_spin_fails_the_test() {
    scenario(async |lab| {
        let spin = found(lab, &format!("echo 'worker failed: trapped' >&2\n{UP}"))?;
        let broker = lab.broker(Broker::builder().on_spin(&spin))?;
        assert_eq!(broker.failures().all(), ["spin up: worker failed: trapped"]);
        assert_eq!(lab.component_failures(), broker.failures().all());
        // Without this, the scenario would fail because of that line.
        fs::write(lab.dir().join("spin-1/stderr"), "")?;
        Ok(())
    });
}

#[test]
fn a_spin_that_is_named_has_to_be_one_and_one_on_the_path_is_passed_over() {
    scenario(async |lab| {
        let named = |path: &Path| Spin::search_by(Some(path.into()), None);
        let nowhere = format!("{:#}", named(Path::new("/nowhere")).expect_err("nothing is there"));
        assert!(nowhere.contains("SPIN is `/nowhere`"), "{nowhere}");

        let empty = lab.dir().join("empty");
        fs::create_dir(&empty)?;
        for (name, version, says) in [
            ("old", "spin 1.5.1 (0123456 2023-10-01)", "needs 2.7 or later"),
            ("other", "Spin Version 6.5.2 -- 6 December 2019", "not what Spin says"),
            ("odd", "spin four", "no version"),
        ] {
            let folder = lab.dir().join(name);
            let program = program(&folder, version, "")?;
            let error = format!("{:#}", named(&program).expect_err("it is of no use"));
            assert!(error.contains(says), "{error}");
            let path = std::env::join_paths([&empty, &folder])?;
            match Spin::search_by(None, Some(&path))? {
                Search::None(why) => assert!(why.contains(says), "{why}"),
                Search::Found(spin) => panic!("{spin:?}"),
            }
        }
        for nothing in [Some("".into()), None] {
            assert!(matches!(Spin::search_by(nothing, Some(empty.as_os_str()))?, Search::None(_)));
        }
        let good = lab.dir().join("good");
        program(&good, "spin 4.2.0", "")?;
        assert!(matches!(Spin::search_by(None, Some(good.as_ref()))?, Search::Found(_)));
        Ok(())
    });
}
