//! The output of real runs, for people and machines.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use e2e::{Broker, Ran, System, eventually, scenario};
use expect_test::expect_file;
use serde_json::Value;

use crate::failover::standing;
use crate::support::{LIMIT, expect_code, expect_healthy, roster, run, start, until_stderr};

const JSON: [&str; 2] = ["--output", "json"];

/// The only document on standard output. It must be valid according to the schema.
pub(crate) fn document(ran: &Ran) -> Value {
    let document: Value = serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {ran}"));
    let schema: Value = serde_json::from_str(include_str!("../../docs/output.schema.json")).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let errors: Vec<_> = validator.iter_errors(&document).map(|error| error.to_string()).collect();
    assert!(errors.is_empty(), "{errors:?}: {ran}");
    assert_eq!(document["exit_code"].as_i64(), ran.code.map(i64::from), "{ran}");
    document
}

/// The output without what differs between runs: addresses become the nodes' names, times and paddings become
/// the same, the Sentinels are sorted by name and not by id, and the second look of a busy machine is left
/// out.
fn evened(system: &System, text: &str) -> String {
    let mut text = text.to_owned();
    for node in system.nodes() {
        let addr = node.addr();
        text = text.replace(&addr.to_string(), node.name());
        // As `redis-server` takes an address.
        text = text.replace(&format!("{} {}", addr.ip(), addr.port()), node.name());
    }
    let is_number = |word: &str| {
        let digits = word.trim_end_matches('s').replace('.', "");
        !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
    };
    let mut evened = String::new();
    let mut is_second_look = false;
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let is_event = words.first().is_some_and(|word| is_number(word) && word.contains('.'));
        if is_event || !line.starts_with(' ') {
            is_second_look = line.ends_with("not verified yet");
        }
        if is_second_look {
            continue;
        }
        let word = |(index, word): (usize, &&str)| {
            let is_time =
                (index == 0 && is_event) || (is_number(word) && words.get(index + 1) == Some(&"ms"));
            let is_date = word.len() == 20 && word.ends_with('Z') && word.as_bytes()[10] == b'T';
            if is_time || is_date { "TIME".to_owned() } else { (*word).to_owned() }
        };
        let mut line = words.iter().enumerate().map(word).collect::<Vec<_>>().join(" ");
        if let Some((what, sentinels)) = line.split_once(": ").filter(|_| line.starts_with("new Sentinels")) {
            let mut sentinels: Vec<&str> = sentinels.split(", ").collect();
            sentinels.sort_unstable();
            line = format!("{what}: {}", sentinels.join(", "));
        }
        evened += &line;
        evened.push('\n');
    }
    evened
}

/// Compares the output with its file, or writes the file.
fn golden(name: &str, system: &System, ran: &Ran) {
    let text = format!("{}--\n{}", evened(system, &ran.stderr), evened(system, &ran.stdout));
    // `UPDATE_EXPECT=1 cargo test -p e2e output` writes the file again.
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("e2e/golden").join(name);
    expect_file![path].assert_eq(&text);
}

#[test]
fn the_output_of_runs_is_that_of_the_golden_files() {
    scenario(async |lab| {
        let system = lab.system(2, 3).await?;
        let ran = run(lab, &system.broker, &["--timeout", "1s"]).await?;
        expect_code(&ran, 3);
        golden("out-of-time.txt", &system, &ran);
        system.register_all().await?;
        let ran = run(lab, &system.broker, &[]).await?;
        expect_code(&ran, 0);
        golden("success.txt", &system, &ran);
        let ran = run(lab, &system.broker, &[]).await?;
        expect_code(&ran, 0);
        golden("already-configured.txt", &system, &ran);

        let system = lab.system(2, 3).await?;
        system.register_all().await?;
        for node in &system.redis {
            node.command(&["SET", "precious", node.name()]).await?;
        }
        let ran = run(lab, &system.broker, &[]).await?;
        expect_code(&ran, 4);
        golden("refused.txt", &system, &ran);
        Ok(())
    });
}

#[test]
fn the_output_of_other_commands_is_that_of_the_golden_files() {
    scenario(async |lab| {
        let system = lab.system(3, 3).await?;
        system.register_all().await?;
        expect_code(&run(lab, &system.broker, &["--sentinels", "3"]).await?, 0);
        let (url, at) = (system.broker.url(), system.redis[2].addr().to_string());
        let cases: [(&str, &[&str]); 4] = [
            ("probe.txt", &["probe", "redis", &at]),
            ("register.txt", &["register", "redis", &at, "--broker", &url]),
            ("dry-join.txt", &["join", "redis", "--broker", &url, "--dry-run", "--", "redis-server"]),
            ("deregister.txt", &["deregister", "redis", &at, "--broker", &url]),
        ];
        for (name, words) in cases {
            let ran = lab.runner(words).run(LIMIT).await?;
            expect_code(&ran, 0);
            golden(name, &system, &ran);
        }
        Ok(())
    });
}

/// Checks the document of a run that has configured a system of 2 + 3.
#[track_caller]
fn expect_configured(ran: &Ran, system: &System) {
    let done = document(ran);
    assert_eq!((ran.code, &done["outcome"]), (Some(0), &"configured".into()), "{ran}");
    assert_eq!(done["master"], system.redis[0].addr().to_string());
    let texts = |list: &Value, field: &str| -> Vec<String> {
        let list = list.as_array().into_iter().flatten();
        list.filter_map(|one| one[field].as_str().map(str::to_owned)).collect()
    };
    let states = texts(&done["nodes"], "state");
    assert_eq!(states, ["master", "replica", "monitoring", "monitoring", "monitoring"], "{ran}");
    // Every planned command was sent.
    let (sent, planned) = (texts(&done["steps"], "command"), texts(&done["plan"]["commands"], "command"));
    assert!(!planned.is_empty() && planned.iter().all(|command| sent.contains(command)), "{ran}");
    assert_eq!(
        texts(&done["timings"]["phases"], "phase"),
        ["wait", "observe", "plan", "prepare", "attach", "monitor", "introduce", "verify", "finish"],
        "{ran}"
    );
}

#[test]
fn every_end_is_one_document_that_the_schema_allows() {
    scenario(async |lab| {
        let system = lab.system(2, 3).await?;
        let json = |flags: &[&'static str]| [&JSON, flags].concat();
        let ran = run(lab, &system.broker, &json(&["--timeout", "300ms"])).await?;
        let late = document(&ran);
        assert_eq!((ran.code, &late["outcome"]), (Some(3), &"incomplete".into()), "{ran}");
        assert_eq!((&late["missing"]["redis"], &late["missing"]["sentinels"]), (&2.into(), &3.into()));

        system.register_all().await?;
        let planned = document(&run(lab, &system.broker, &json(&["--dry-run"])).await?);
        assert_eq!(planned["outcome"], "planned");
        assert_eq!(planned["steps"].as_array().map(Vec::len), Some(0), "{planned}");

        let ran = run(lab, &system.broker, &json(&["--sentinel-set", "parallel-syncs=2"])).await?;
        expect_configured(&ran, &system);

        let again = document(&run(lab, &system.broker, &JSON).await?);
        assert_eq!((&again["outcome"], &again["plan"]), (&"already-configured".into(), &Value::Null));

        let ran = run(lab, &system.broker, &json(&["--discard-data"])).await?;
        assert_eq!((ran.code, &document(&ran)["outcome"]), (Some(2), &"usage".into()));
        // clap itself refuses these flags, so the program never gets to read `--output`.
        let ran = lab.runner(["status", "--nonsense", "--output=json"]).run(LIMIT).await?;
        let wrong = document(&ran);
        assert_eq!(
            (ran.code, &wrong["command"], &wrong["outcome"]),
            (Some(2), &"status".into(), &"usage".into())
        );

        let gone = lab.broker(Broker::builder())?.url();
        let args = ["bootstrap", "--broker", &gone, "--timeout", "300ms", "--output", "json"];
        let ran = lab.runner(args).run(LIMIT).await?;
        assert_eq!((ran.code, &document(&ran)["outcome"]), (Some(7), &"broker".into()));

        let empty = lab.broker(Broker::builder())?;
        let mut running = start(lab, &empty, &JSON)?;
        until_stderr(&mut running, "still to register").await?;
        running.signal(e2e::Signal::INT)?;
        let ran = running.wait(LIMIT).await?;
        assert_eq!((ran.code, &document(&ran)["outcome"]), (Some(130), &"stopped".into()));
        Ok(())
    });
}

#[test]
fn a_log_for_machines_is_one_object_a_line() {
    scenario(async |lab| {
        let system = lab.system(2, 3).await?;
        system.register_all().await?;
        let ran = run(lab, &system.broker, &["--log-format", "json", "-v"]).await?;
        expect_code(&ran, 0);
        let lines: Vec<Value> = ran
            .stderr
            .lines()
            .map(serde_json::from_str)
            .collect::<Result<_, _>>()
            .context(ran.stderr.clone())?;
        let events: Vec<&str> = lines.iter().filter_map(|line| line["event"].as_str()).collect();
        for event in ["registered", "plan", "command", "verified"] {
            assert!(events.contains(&event), "{event}: {ran}");
        }
        Ok(())
    });
}

#[test]
fn quiet_prints_only_errors_and_no_pipe_gets_colours_unasked() {
    scenario(async |lab| {
        let system = lab.system_of(2, 1, |node| node.password("s3cret")).await?;
        system.register_all().await?;
        let password = ["--redis-password", "s3cret", "--sentinel-password", "s3cret"];
        let flags = |more: &[&'static str]| [&password, more].concat();
        let ran = run(lab, &system.broker, &flags(&["--verbose"])).await?;
        expect_code(&ran, 0);
        assert!(ran.stderr.contains("CONFIG SET masterauth *** -> OK"), "{ran}");
        assert!(ran.stderr.contains("SENTINEL SET mymaster auth-pass *** -> OK"), "{ran}");
        assert!(!ran.stderr.contains("s3cret") && !ran.stderr.contains('\u{1b}'), "{ran}");

        let ran = run(lab, &system.broker, &flags(&["--quiet"])).await?;
        expect_code(&ran, 0);
        assert_eq!((&*ran.stdout, &*ran.stderr), ("", ""));
        let ran = run(lab, &system.broker, &["--quiet"]).await?;
        expect_code(&ran, 5);
        assert!(ran.stderr.starts_with("error: ") && ran.stderr.contains("hint: "), "{ran}");

        let ran = run(lab, &system.broker, &flags(&["--color", "always"])).await?;
        assert!(ran.stderr.contains('\u{1b}') && ran.stdout.contains('\u{1b}'), "{ran}");
        Ok(())
    });
}

/// A run that writes its standard output and error to the pipe.
fn piped(system: &System, writer: std::io::PipeWriter) -> Result<std::process::Child> {
    let mut command = Command::new(e2e::runner_program());
    command.env_clear().args(["bootstrap", "--broker", &system.broker.url(), "--timeout", "40s", "-v"]);
    Ok(command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer).spawn()?)
}

/// Waits for the end of the run, and kills it if it does not end.
async fn exit_code(mut child: std::process::Child) -> Result<Option<i32>> {
    let ended = eventually(LIMIT, async || child.try_wait()?.context("the run does not end")).await;
    if ended.is_err() {
        child.kill()?;
        child.wait()?;
    }
    Ok(ended?.code())
}

#[test]
fn a_run_completes_if_its_reader_is_gone_or_reads_nothing() {
    scenario(async |lab| {
        let system = lab.system(2, 3).await?;
        system.register_all().await?;
        let (reader, writer) = std::io::pipe()?;
        drop(reader);
        assert_eq!(exit_code(piped(&system, writer)?).await?, Some(0));
        expect_healthy(&system, 0).await?;

        let system = lab.system(2, 3).await?;
        system.register_all().await?;
        let (reader, mut writer) = std::io::pipe()?;
        // The pipe is full: a process that writes more to it waits.
        writer.write_all(&vec![b'x'; rustix::pipe::fcntl_getpipe_size(&writer)?])?;
        let child = piped(&system, writer)?;
        eventually(LIMIT, async || {
            let outcome = roster(&system.broker).await?.outcome;
            let is_verified = outcome.as_ref().is_some_and(|outcome| outcome.verified);
            ensure!(is_verified, "the run waits for its reader, and has reported {outcome:?}");
            Ok(())
        })
        .await?;
        drop(reader);
        assert_eq!(exit_code(child).await?, Some(0));
        expect_healthy(&system, 0).await
    });
}

#[test]
fn a_terminal_shows_who_is_missing_and_ends_with_the_table_alone() {
    scenario(async |lab| {
        let system = lab.system(2, 3).await?;
        let args = ["bootstrap", "--broker", &system.broker.url(), "--timeout", "40s"];
        let mut terminal = lab.terminal(args, &[], (24, 80), "")?;
        terminal.until("not registered", LIMIT).await?;
        assert_eq!(terminal.text().matches("not registered").count(), 5, "{}", terminal.text());
        system.broker.register(&system.redis[0]).await?;
        terminal.until(&system.redis[0].addr().to_string(), LIMIT).await?;
        terminal.until("left", LIMIT).await?;
        assert_eq!(terminal.text().matches("not registered").count(), 4, "{}", terminal.text());
        system.register_all().await?;
        let status = terminal.ended(LIMIT).await?;
        let text = terminal.text();
        assert_eq!(status.code(), Some(0), "{text}");
        assert!(!text.contains("registered") && !text.contains(" left"), "the view is gone:\n{text}");
        let master = system.redis[0].addr();
        for line in [
            format!("master {master}: the first to register"),
            format!("master    {master}"),
            "verified in".to_owned(),
        ] {
            assert!(text.contains(&line), "{line}:\n{text}");
        }
        assert!(text.lines().last().is_some_and(|line| line.starts_with("  sentinel")), "{text}");
        assert!(terminal.written().windows(2).any(|bytes| bytes == b"\x1b["), "it is in colour");
        assert!(!terminal.screen().hide_cursor() && !terminal.screen().alternate_screen());
        expect_healthy(&system, 0).await?;

        // With NO_COLOR, no escape sequence sets a colour. The view's sequences only move the cursor.
        let mut terminal = lab.terminal(args, &[("NO_COLOR", "1")], (24, 80), "")?;
        assert_eq!(terminal.ended(LIMIT).await?.code(), Some(0));
        let written = String::from_utf8_lossy(terminal.written()).into_owned();
        let colours = written.split('\u{1b}').skip(1).filter(|code| {
            code.trim_start_matches(|c: char| c == '[' || c == ';' || c.is_ascii_digit()).starts_with('m')
        });
        assert_eq!(colours.collect::<Vec<_>>(), Vec::<&str>::new());
        Ok(())
    });
}

#[test]
fn ctrl_c_leaves_the_terminal_as_it_was() {
    scenario(async |lab| {
        let broker = lab.broker(Broker::builder())?;
        let args = ["bootstrap", "--broker", &broker.url()];
        let mut terminal = lab.terminal(args, &[], (24, 80), "$ sentinel-runner bootstrap\r\n")?;
        terminal.until("still to register", LIMIT).await?;
        terminal.keys("\x03").await?;
        let status = terminal.ended(LIMIT).await?;
        let text = terminal.text();
        assert_eq!(status.code(), Some(130), "{text}");
        let lines: Vec<&str> = text.lines().filter(|line| *line != "^C").collect();
        assert_eq!(
            lines,
            [
                "$ sentinel-runner bootstrap",
                "error: stopped by SIGINT",
                "hint: run this again; it continues where it stopped"
            ],
            "{text}"
        );
        let screen = terminal.screen();
        assert!(!screen.hide_cursor() && !screen.alternate_screen() && !screen.bold());
        assert_eq!(screen.cursor_position().1, 0, "the next prompt begins a line");
        Ok(())
    });
}

#[test]
fn old_names_of_variables_are_read_with_a_warning() {
    scenario(async |lab| {
        let system = standing(lab, 2).await?;
        let url = system.broker.url();
        let ran = lab
            .runner(["status", "--broker", &url])
            .env("ALLOW", "127.0.0.0/8")
            .env("VERBOSE", "")
            .run(LIMIT)
            .await?;
        expect_code(&ran, 0);
        assert!(ran.stderr.contains("the variable ALLOW is now SENTINEL_RUNNER_ALLOW"), "{ran}");
        assert!(!ran.stderr.contains("VERBOSE"), "{ran}");
        let ran = lab.runner(["status", "--broker", &url]).env("ALLOW", "192.0.2.0/24").run(LIMIT).await?;
        assert!(ran.code != Some(0) && ran.stdout.contains("is not in any `--allow` network"), "{ran}");
        // Another program may use a variable of the same name, so it must not start a drill.
        let ran = lab.runner(["verify", "--broker", &url]).env("FAILOVER", "yes").run(LIMIT).await?;
        expect_code(&ran, 0);
        assert!(ran.stderr.contains("FAILOVER is not read any more"), "{ran}");
        let role = system.redis[0].info("replication").await?;
        assert_eq!(role["role"], "master", "{ran}");
        Ok(())
    });
}

#[test]
fn an_old_variable_that_deletes_data_is_not_read() {
    scenario(async |lab| {
        let system = lab.system(2, 3).await?;
        for (node, key) in system.redis.iter().zip(["a", "b"]) {
            node.command(&["SET", key, "1"]).await?;
        }
        system.register_all().await?;
        let (url, master) = (system.broker.url(), system.redis[0].addr().to_string());
        let runner = lab.runner(["bootstrap", "--broker", &url, "--master", &master]);
        let ran = runner.env("DISCARD_DATA", "true").run(LIMIT).await?;
        expect_code(&ran, 4);
        assert!(ran.stderr.contains("the variable DISCARD_DATA is not read any more"), "{ran}");
        let kept: u64 = system.redis[1].query(&["EXISTS", "b"]).await?;
        assert_eq!(kept, 1, "{ran}");
        Ok(())
    });
}
