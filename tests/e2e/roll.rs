//! `roll`: every Redis server is restarted, one after the other, while clients write.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use e2e::{Lab, Running, System, eventually, scenario, scenario_within};
use serde_json::Value;

use crate::failover::{GAP_MS, OFTEN, standing, standing_behind_join, until_written};
use crate::join::{master, until_healthy};
use crate::support::{LIMIT, expect_code, run, tried, whole_sweep};

/// The command that `roll` runs. It shows the test which server's turn it is, and ends when the test has
/// finished with that server.
const HANDS_OVER_TO_THE_TEST: &str =
    "touch $0/{port}.asked; until [ -e $0/{port}.done ]; do sleep 0.02; done";

fn start(lab: &Lab, system: &System, flags: &[&str], command: &[&str]) -> Result<Running> {
    let runner = lab.runner(["roll", "--broker", &system.broker.url(), "--output", "json"]);
    runner.args(flags).args(["--"]).args(command).start()
}

/// Waits until a server's turn comes. Returns the server's index, or `None` if the roll has ended.
async fn next(running: &mut Running, system: &System, files: &[PathBuf]) -> Result<Option<usize>> {
    eventually(LIMIT, async || {
        let is_next =
            |file: &PathBuf| file.with_extension("asked").exists() && !file.with_extension("done").exists();
        let next = files.iter().position(is_next);
        let is_over = next.is_some() || !running.is_running()?;
        ensure!(is_over, "no server's turn comes: {}: {}", system.broker.url(), running.stderr());
        Ok(next)
    })
    .await
}

#[test]
fn long_a_roll_restarts_every_server_and_loses_no_write() {
    scenario_within(OFTEN, async |lab| {
        let (system, mut client) = standing_behind_join(lab).await?;
        let mut gaps = Vec::new();
        for round in 0..if whole_sweep() { 5 } else { 1 } {
            until_written(&system).await?;
            let before = master(&system).await?;
            let dir = lab.dir().join(format!("turns-{round}"));
            std::fs::create_dir(&dir)?;
            let files: Vec<_> =
                system.redis.iter().map(|node| dir.join(node.addr().port().to_string())).collect();
            client.begin().await?;
            let dir = dir.to_string_lossy();
            let mut running = start(lab, &system, &[], &["sh", "-c", HANDS_OVER_TO_THE_TEST, &dir])?;
            let mut turns = Vec::new();
            while let Some(index) = next(&mut running, &system, &files).await? {
                turns.push(index);
                ensure!(master(&system).await? != index, "a master's turn has come");
                system.redis[index].terminate(LIMIT).await?;
                system.redis[index].relaunch()?;
                std::fs::write(files[index].with_extension("done"), "")?;
            }
            let ran = running.wait(LIMIT).await?;
            expect_code(&ran, 0);
            gaps.push(client.end().await?);
            assert_eq!((turns.len(), turns.last()), (3, Some(&before)), "{ran}");
            let document: Value = serde_json::from_str(&ran.stdout)?;
            let servers = document["roll"]["servers"].as_array().context("a list")?;
            assert!(servers.iter().all(|server| server["restarted"] == true), "{ran}");
            assert_eq!(document["roll"]["failover"]["from"], system.redis[before].addr().to_string());
            until_healthy(&system).await?;
        }
        gaps.sort_by(f64::total_cmp);
        tried(format_args!(
            "failovers tried: roll through 3 + 3: no write lost, longest gap {} ms",
            gaps[gaps.len() - 1]
        ));
        // Times are not checked if the machine is busy with other tests.
        ensure!(!whole_sweep() || gaps[gaps.len() - 1] <= GAP_MS.0, "{gaps:?}");
        Ok(())
    });
}

#[test]
fn a_roll_stops_at_the_first_server_that_fails_and_goes_on_where_it_was() {
    scenario(async |lab| {
        let system = standing(lab, 3).await?;
        let [first, second, third] = [1, 2, 0].map(|index| system.redis[index].addr());
        let fails = format!("test {{port}} != {}", second.port());
        let ran = start(lab, &system, &[], &["sh", "-c", &fails])?.wait(LIMIT).await?;
        expect_code(&ran, 1);
        assert!(ran.stderr.contains(&format!("stopped at {second}")), "{ran}");
        assert!(ran.stderr.contains(&format!("--done {first}")), "{ran}");
        assert_eq!(master(&system).await?, 0, "nothing was handed over");
        // The second server does not come back.
        let command = [
            "sh",
            "-c",
            &format!("redis-cli -p {{port}} shutdown nosave; test {{port}} = {}", second.port()),
        ];
        let done = first.to_string();
        let ran = start(lab, &system, &["--done", &done, "--timeout", "2s"], &command)?.wait(LIMIT).await?;
        expect_code(&ran, 6);
        assert!(ran.stderr.contains(&format!("stopped at {second}")), "{ran}");
        system.redis[2].restart().await?;
        // The run waits until the Sentinels have found the server again.
        expect_code(&run(lab, &system.broker, &[]).await?, 0);
        let ran = start(lab, &system, &["--done", &done], &["echo", "{host}:{port}"])?.wait(LIMIT).await?;
        expect_code(&ran, 0);
        let document: Value = serde_json::from_str(&ran.stdout)?;
        let servers = document["roll"]["servers"].as_array().context("a list")?;
        let turns: Vec<_> = servers.iter().map(|server| server["address"].as_str()).collect();
        assert_eq!(turns, [Some(&*second.to_string()), Some(&*third.to_string())]);
        assert!(servers.iter().all(|server| server["restarted"] == false), "{ran}");
        assert!(ran.stderr.contains(&format!("\n{second}\n")), "what a command prints is shown: {ran}");
        assert_ne!(until_healthy(&system).await?, 0);
        Ok(())
    });
}

#[test]
fn a_roll_that_can_not_complete_restarts_no_server() {
    scenario(async |lab| {
        let system = standing(lab, 2).await?;
        let ran = start(lab, &system, &[], &["true"])?.wait(LIMIT).await?;
        expect_code(&ran, 2);
        assert!(ran.stderr.contains("{host} or {port}, which stand for the server"), "{ran}");
        let ran = start(lab, &system, &["--done", "127.0.0.1:1"], &["echo", "{port}"])?.wait(LIMIT).await?;
        expect_code(&ran, 2);
        for node in &system.redis {
            node.command(&["CONFIG", "SET", "replica-priority", "0"]).await?;
        }
        let ran = start(lab, &system, &[], &["echo", "turn-of-{port}"])?.wait(LIMIT).await?;
        assert!(matches!(ran.code, Some(4 | 5)) && !ran.stderr.contains("turn-of-"), "{ran}");
        Ok(())
    });
}
