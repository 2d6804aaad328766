//! Several groups, each with its own master, and three Sentinels that monitor all groups.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use broker_fn::api::Kind;
use e2e::{Broker, Lab, Node, eventually, scenario};

use crate::join::{FAST, joining};
use crate::support::{LIMIT, expect_code, run};

const GROUPS: [&str; 2] = ["orders", "sessions"];

async fn id(sentinel: &Node) -> Result<String> {
    sentinel.query(&["SENTINEL", "MYID"]).await
}

/// Waits until a group is verified, and each of these Sentinels knows the two others in it.
async fn until_whole(lab: &Lab, broker: &Broker, group: &str, sentinels: &[Node]) -> Result<()> {
    eventually(LIMIT, async || {
        let ran = lab.runner(["verify", "--broker", &broker.url(), "--group", group]).run(LIMIT).await?;
        let mut knows = Vec::new();
        for sentinel in sentinels {
            let master: Result<BTreeMap<String, String>> =
                sentinel.query(&["SENTINEL", "MASTER", group]).await;
            knows.push(master.ok().map(|fields| fields["num-other-sentinels"].clone()));
        }
        let is_whole = ran.code == Some(0) && knows.iter().all(|others| others.as_deref() == Some("2"));
        ensure!(is_whole, "{group}: the Sentinels know {knows:?} others\n{ran}");
        Ok(())
    })
    .await
}

/// Launches two Redis servers for each group, and three Sentinels. The third Sentinel is only in the first
/// group.
fn launched(lab: &Lab, broker: &Broker) -> Result<(Vec<Node>, Vec<Node>)> {
    let mut redis = Vec::new();
    for group in GROUPS {
        for _ in 0..2 {
            redis.push(joining(lab, Kind::Redis, broker).join_flags(["--group", group]).launch()?);
        }
    }
    let flags: [&[&str]; 3] = [
        &["--group", "orders,sessions"],
        &["--group", "orders", "--group", "sessions"],
        &["--group", "orders"],
    ];
    let sentinels =
        flags.map(|flags| joining(lab, Kind::Sentinel, broker).join_flags(flags.to_vec()).launch());
    Ok((redis, sentinels.into_iter().collect::<Result<_>>()?))
}

/// Stops the third Sentinel, and starts another one with its port and without its files, which is in both
/// groups. It must get the first one's id, because the others know it by its address.
async fn restarts_in_both(lab: &Lab, broker: &Broker, sentinels: &mut Vec<Node>) -> Result<()> {
    let third = sentinels.pop().expect("there are three");
    let (before, port) = (id(&third).await?, third.addr().port());
    third.terminate(LIMIT).await?;
    let builder = joining(lab, Kind::Sentinel, broker).port(port).join_flags(["--group", "orders,sessions"]);
    drop(third);
    sentinels.push(builder.launch()?);
    until_whole(lab, broker, "orders", sentinels).await?;
    assert_eq!(id(&sentinels[2]).await?, before, "it is known by its address");
    Ok(())
}

/// Kills a Sentinel and deletes its file. It must come back to both groups with its id.
async fn loses_its_disk(lab: &Lab, broker: &Broker, sentinels: &[Node]) -> Result<()> {
    let lost = &sentinels[0];
    let before = id(lost).await?;
    lost.kill();
    std::fs::remove_file(lost.config_file())?;
    lost.relaunch()?;
    for group in GROUPS {
        until_whole(lab, broker, group, sentinels).await?;
    }
    assert_eq!(id(lost).await?, before);
    Ok(())
}

/// Kills the master of a group, which must fail over to its other server, and starts it again.
async fn fails_over(
    lab: &Lab,
    broker: &Broker,
    group: &str,
    servers: &[Node],
    sentinels: &[Node],
) -> Result<()> {
    let ask = ["SENTINEL", "GET-MASTER-ADDR-BY-NAME", group];
    let before: Vec<String> = sentinels[0].query(&ask).await?;
    let is_master = |node: &&Node| node.addr().port().to_string() == before[1];
    let master = servers.iter().find(is_master).expect("it is one of the group's");
    master.kill();
    eventually(LIMIT, async || {
        let named: Vec<String> = sentinels[0].query(&ask).await?;
        ensure!(named != before, "{group} does not fail over: its master is {named:?}");
        Ok(())
    })
    .await?;
    master.relaunch()?;
    until_whole(lab, broker, group, sentinels).await
}

#[test]
fn long_one_trio_of_sentinels_monitors_several_groups() {
    scenario(async |lab| {
        let broker = lab.broker(Broker::builder().variable("expected_redis", 2))?;
        let (redis, mut sentinels) = launched(lab, &broker)?;
        expect_code(&run(lab, &broker, &[&["--group", "orders"], &FAST[..]].concat()).await?, 0);
        until_whole(lab, &broker, "orders", &sentinels).await?;

        // The second group comes later, on the same Sentinels.
        restarts_in_both(lab, &broker, &mut sentinels).await?;
        expect_code(&run(lab, &broker, &[&["--group", "sessions"], &FAST[..]].concat()).await?, 0);
        for group in GROUPS {
            until_whole(lab, &broker, group, &sentinels).await?;
        }
        loses_its_disk(lab, &broker, &sentinels).await?;

        // Each group fails over independently.
        for (group, servers) in GROUPS.iter().zip(redis.chunks(2)) {
            fails_over(lab, &broker, group, servers, &sentinels).await?;
        }
        Ok(())
    });
}
