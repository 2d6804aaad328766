//! Several groups, each with a master of its own, and one trio of Sentinels that watches them all.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use broker_fn::api::Kind;
use e2e::{Broker, Lab, Node, scenario};

use crate::join::{FAST, joining};
use crate::support::{LIMIT, expect_code, run};

const POLL: Duration = Duration::from_millis(20);

const GROUPS: [&str; 2] = ["orders", "sessions"];

async fn id(sentinel: &Node) -> Result<String> {
    sentinel.query(&["SENTINEL", "MYID"]).await
}

/// Waits until a group is verified, and each of these Sentinels knows the two others in it.
async fn until_whole(lab: &Lab, broker: &Broker, group: &str, sentinels: &[Node]) -> Result<()> {
    let started = Instant::now();
    loop {
        let ran = lab.runner(["verify", "--broker", &broker.url(), "--group", group]).run(LIMIT).await?;
        let mut knows = Vec::new();
        for sentinel in sentinels {
            let master: Result<BTreeMap<String, String>> =
                sentinel.query(&["SENTINEL", "MASTER", group]).await;
            knows.push(master.ok().map(|fields| fields["num-other-sentinels"].clone()));
        }
        if ran.code == Some(0) && knows.iter().all(|others| others.as_deref() == Some("2")) {
            return Ok(());
        }
        ensure!(started.elapsed() < LIMIT, "{group}: {knows:?}\n{ran}");
    }
}

#[test]
fn one_trio_of_sentinels_watches_several_groups_and_finds_them_again() {
    scenario(async |lab| {
        let broker = lab.broker(Broker::builder().variable("expected_redis", 2))?;
        let mut redis = Vec::new();
        for group in GROUPS {
            for _ in 0..2 {
                redis.push(joining(lab, Kind::Redis, &broker).join_flags(["--group", group]).launch()?);
            }
        }
        let in_both: [&[&str]; 3] = [
            &["--group", "orders,sessions"],
            &["--group", "orders", "--group", "sessions"],
            &["--group", "orders"],
        ];
        let sentinels =
            in_both.map(|flags| joining(lab, Kind::Sentinel, &broker).join_flags(flags.to_vec()).launch());
        let mut sentinels: Vec<Node> = sentinels.into_iter().collect::<Result<_>>()?;
        expect_code(&run(lab, &broker, &[&["--group", "orders"], &FAST[..]].concat()).await?, 0);
        until_whole(lab, &broker, "orders", &sentinels).await?;

        // The second group comes later, on the same Sentinels: the third Sentinel is restarted with both
        // groups.
        let third = sentinels.pop().expect("there are three");
        let (before, port) = (id(&third).await?, third.addr().port());
        third.terminate(LIMIT).await?;
        let builder =
            joining(lab, Kind::Sentinel, &broker).port(port).join_flags(["--group", "orders,sessions"]);
        drop(third);
        sentinels.push(builder.launch()?);
        until_whole(lab, &broker, "orders", &sentinels).await?;
        assert_eq!(id(&sentinels[2]).await?, before, "it is known by its address");
        expect_code(&run(lab, &broker, &[&["--group", "sessions"], &FAST[..]].concat()).await?, 0);
        for group in GROUPS {
            until_whole(lab, &broker, group, &sentinels).await?;
        }

        // A Sentinel loses its disk, and comes back to both groups.
        let lost = &sentinels[0];
        let before = id(lost).await?;
        lost.kill();
        std::fs::remove_file(lost.config_file())?;
        lost.relaunch()?;
        for group in GROUPS {
            until_whole(lab, &broker, group, &sentinels).await?;
        }
        assert_eq!(id(lost).await?, before);

        // Each group fails over by itself.
        for (group, server) in GROUPS.iter().zip([0, 2]) {
            let master: Vec<String> =
                sentinels[0].query(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", group]).await?;
            let servers = &redis[server..server + 2];
            let is_master = |node: &&Node| node.addr().port().to_string() == master[1];
            let master = servers.iter().find(is_master).expect("it is one of the group's");
            let asked = ["SENTINEL", "GET-MASTER-ADDR-BY-NAME", group];
            let before: Vec<String> = sentinels[0].query(&asked).await?;
            master.kill();
            let started = Instant::now();
            while sentinels[0].query::<Vec<String>>(&asked).await? == before {
                ensure!(started.elapsed() < LIMIT, "{group} does not fail over");
                tokio::time::sleep(POLL).await;
            }
            master.relaunch()?;
            until_whole(lab, &broker, group, &sentinels).await?;
        }
        Ok(())
    });
}
