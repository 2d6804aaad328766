//! Verified means seen to work, also between machines. One test for each way in which the runner reaches all
//! nodes, but one node does not reach another.
//!
//! The machines are network namespaces. If the machine of the tests does not allow them, the tests print
//! that.

use anyhow::{Result, ensure};
use e2e::{Broker, Lab, Machine, Network, Ran, System, redis_version, scenario};
use futures::future::try_join_all;

use crate::join::FAST;
use crate::support::{LIMIT, expect_code, expect_healthy, run, tried};

/// Long enough for a run to see that a fault does not pass.
const A_WHILE: [&str; 2] = ["--timeout", "3s"];

/// Two Redis servers and three Sentinels, each on a separate machine, registered with a broker that all of
/// them reach.
struct Site {
    network: Network,
    machines: Vec<Machine>,
    system: System,
}

/// `None` if there can't be one here.
async fn network(lab: &Lab) -> Option<Network> {
    let network = Network::new(lab).await;
    network
        .map_err(|error| tried(format_args!("not tried here: nodes on machines of their own: {error:#}")))
        .ok()
}

impl Site {
    /// `None` if there can't be one here.
    async fn new(lab: &Lab) -> Result<Option<Self>> {
        let Some(mut network) = network(lab).await else { return Ok(None) };
        let mut machines = Vec::new();
        for _ in 0..5 {
            machines.push(network.machine(lab).await?);
        }
        let version = redis_version()?;
        let broker = lab.broker(Broker::builder().listen((network.addr(), 0).into()))?;
        let redis = machines[..2].iter().map(|machine| {
            let node = lab.redis().on(machine, 6379);
            // The server's connections come from the address that its machine chooses.
            let node = if version < (7, 0) { node } else { node.config("bind-source-addr \"\"") };
            node.config("protected-mode no").start()
        });
        let redis = try_join_all(redis).await?;
        let sentinels = machines[2..].iter().map(|machine| {
            let node = lab.sentinel().on(machine, 26379);
            node.config("protected-mode no").start()
        });
        let sentinels = try_join_all(sentinels).await?;
        let system = System { broker, redis, sentinels };
        system.register_all().await?;
        Ok(Some(Self { network, machines, system }))
    }

    async fn run(&self, lab: &Lab, flags: &[&str]) -> Result<Ran> {
        run(lab, &self.system.broker, &[&FAST[..], flags].concat()).await
    }

    /// Checks that the system is not verified while these machines don't reach each other, and that the run
    /// prints all of this. Once they reach each other again, the system is verified.
    async fn is_named_while_parted(&self, lab: &Lab, parted: &[&Machine], says: &[String]) -> Result<()> {
        self.network.part(parted).await?;
        let ran = self.run(lab, &A_WHILE).await?;
        expect_code(&ran, 6);
        for text in says.iter().map(String::as_str).chain(["reaches that address"]) {
            assert!(ran.stderr.contains(text), "does not print `{text}`: {ran}");
        }
        self.network.heal(parted).await?;
        let limit = format!("{}s", LIMIT.as_secs());
        expect_code(&self.run(lab, &["--timeout", &limit]).await?, 0);
        expect_healthy(&self.system, 0).await
    }
}

#[test]
fn sentinels_that_do_not_reach_each_other_are_named() {
    scenario(async |lab| {
        let Some(site) = Site::new(lab).await? else { return Ok(()) };
        // All Sentinels reach the servers, and read each other's hellos there.
        let sentinels: Vec<&Machine> = site.machines[2..].iter().collect();
        let says: Vec<String> =
            site.system.sentinels.iter().map(|sentinel| sentinel.addr().to_string()).collect();
        site.is_named_while_parted(lab, &sentinels, &says).await
    });
}

#[test]
fn a_sentinel_that_does_not_reach_the_replica_is_named() {
    scenario(async |lab| {
        let Some(site) = Site::new(lab).await? else { return Ok(()) };
        let (replica, sentinel) = (&site.machines[1], &site.machines[2]);
        let says = [&site.system.redis[1], &site.system.sentinels[0]].map(|node| node.addr().to_string());
        site.is_named_while_parted(lab, &[replica, sentinel], &says).await
    });
}

#[test]
fn a_replica_with_a_second_interface_is_named_and_announces_the_first() {
    scenario(async |lab| {
        let Some(site) = Site::new(lab).await? else { return Ok(()) };
        let replica = &site.system.redis[1];
        let second = site.network.connect_again(&site.machines[1]).await?;
        let ran = site.run(lab, &A_WHILE).await?;
        expect_code(&ran, 6);
        let host = replica.addr().ip();
        for text in [
            replica.addr().to_string(),
            format!("{second}:{}", replica.addr().port()),
            format!("CONFIG SET replica-announce-ip {host}"),
        ] {
            assert!(ran.stderr.contains(&text), "does not print `{text}`: {ran}");
        }
        assert!(ran.stderr.contains("CLIENT KILL TYPE master"), "{ran}");
        // This is the command in the hint.
        replica.command(&["CONFIG", "SET", "replica-announce-ip", &host.to_string()]).await?;
        replica.command(&["CLIENT", "KILL", "TYPE", "master"]).await?;
        expect_code(&site.run(lab, &[]).await?, 0);
        expect_healthy(&site.system, 0).await
    });
}

#[test]
fn what_a_sentinel_on_another_machine_calls_127_0_0_1_is_not_this_node() {
    scenario(async |lab| {
        let Some(mut network) = network(lab).await else { return Ok(()) };
        let (machine, other) = (network.machine(lab).await?, network.machine(lab).await?);
        // Debian's package starts a Sentinel with this line, until a person changes it.
        let sentinel = lab.sentinel().on(&other, 26379).config("protected-mode no");
        let sentinel = sentinel.config("sentinel monitor mymaster 127.0.0.1 6379 2").start().await?;
        let broker = lab.broker(Broker::builder().listen((network.addr(), 0).into()))?;
        let flags =
            ["--broker", &broker.url(), "--group", "mymaster", "--sentinel", &sentinel.addr().to_string()];
        let node = lab.redis().on(&machine, 6379).config("protected-mode no").joining(flags).launch()?;
        node.until_logged("registered as").await?;
        ensure!(node.log().contains("starting held"), "{}", node.log());
        Ok(())
    });
}
