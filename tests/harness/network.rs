//! Separate machines on one switch that can be split: Linux network namespaces.
//!
//! Each namespace is held by a process. When the process ends, the namespace ends too, with every interface
//! in it and every interface whose peer was in it. So nothing is left over, even if this process is killed.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tokio::process::Command;

use crate::eventually;
use crate::lab::Lab;
use crate::process::Process;
use crate::runner::inherited;

/// How long a namespace may take to start.
const LIMIT: Duration = Duration::from_secs(10);

/// How many networks there are to choose from. 198.18.0.0/15 is reserved for tests of networks (RFC 2544).
const NETWORKS: u32 = 512;

/// A switch. This process and the brokers in it are connected to the switch at [`addr`](Self::addr).
#[derive(Debug)]
pub struct Network {
    switch: Process,
    /// The first three numbers of every address.
    prefix: [u8; 3],
    machines: u8,
}

/// A machine on the switch, with its own interfaces, addresses and ports.
#[derive(Debug)]
pub struct Machine {
    holder: Process,
    addr: IpAddr,
    /// The switch's end of the machine's cable.
    port: String,
}

impl Network {
    /// Makes a network.
    ///
    /// # Errors
    ///
    /// If this machine does not allow it: it takes root, Linux, and the programs `unshare`, `nsenter` and
    /// `ip`.
    pub async fn new(lab: &Lab) -> Result<Self> {
        let switch = namespace(lab).await?;
        let (prefix, name) = cable_to(&switch).await?;
        ip(None, &format!("addr add {}/24 dev {name}", address(prefix, 1))).await?;
        ip(None, &format!("link set {name} up")).await?;
        ip(Some(&switch), "link add switch type bridge").await?;
        ip(Some(&switch), "link set switch up").await?;
        ip(Some(&switch), "link set uplink master switch up").await?;
        Ok(Self { switch, prefix, machines: 0 })
    }

    /// The address of this process in the network.
    #[must_use]
    pub fn addr(&self) -> IpAddr {
        address(self.prefix, 1)
    }

    /// Connects another machine.
    pub async fn machine(&mut self, lab: &Lab) -> Result<Machine> {
        self.machines += 1;
        let holder = namespace(lab).await?;
        let (addr, port) = (address(self.prefix, 1 + self.machines), format!("port{}", self.machines));
        let pid = holder.id().to_string();
        ip(Some(&self.switch), &format!("link add {port} type veth peer name eth0 netns {pid}")).await?;
        ip(Some(&self.switch), &format!("link set {port} master switch up")).await?;
        ip(Some(&holder), &format!("addr add {addr}/24 dev eth0")).await?;
        ip(Some(&holder), "link set eth0 up").await?;
        ip(Some(&holder), "link set lo up").await?;
        Ok(Machine { holder, addr, port })
    }

    /// Adds a second interface to the machine, from which all its connections come from now on. Returns the
    /// address.
    pub async fn connect_again(&self, machine: &Machine) -> Result<IpAddr> {
        let second = address(self.prefix, u8::MAX - 1);
        let (port, pid) = (format!("{}b", machine.port), machine.holder.id());
        ip(Some(&self.switch), &format!("link add {port} type veth peer name eth1 netns {pid}")).await?;
        ip(Some(&self.switch), &format!("link set {port} master switch up")).await?;
        ip(Some(&machine.holder), &format!("addr add {second}/24 dev eth1")).await?;
        ip(Some(&machine.holder), "link set eth1 up").await?;
        // There are two routes into one network: the second interface takes precedence.
        let [first, second_part, third] = self.prefix;
        let network = format!("{first}.{second_part}.{third}.0/24");
        ip(Some(&machine.holder), &format!("route del {network} dev eth0")).await?;
        Ok(second)
    }

    /// From now on, these machines don't reach each other. Each still reaches this process.
    pub async fn part(&self, machines: &[&Machine]) -> Result<()> {
        self.isolate(machines, "on").await
    }

    /// From now on, these machines reach each other again.
    pub async fn heal(&self, machines: &[&Machine]) -> Result<()> {
        self.isolate(machines, "off").await
    }

    async fn isolate(&self, machines: &[&Machine], isolated: &str) -> Result<()> {
        for Machine { port, .. } in machines {
            let set = format!("link set {port} type bridge_slave isolated {isolated}");
            ip(Some(&self.switch), &set).await?;
        }
        Ok(())
    }

    /// Pulls the machine's cable: from now on, the machine reaches no other.
    pub async fn unplug(&self, machine: &Machine) -> Result<()> {
        ip(Some(&self.switch), &format!("link set {} down", machine.port)).await
    }

    /// Plugs the cable in again.
    pub async fn plug_in(&self, machine: &Machine) -> Result<()> {
        ip(Some(&self.switch), &format!("link set {} up", machine.port)).await
    }
}

impl Machine {
    /// The machine's address.
    #[must_use]
    pub fn addr(&self) -> IpAddr {
        self.addr
    }

    /// The path of the machine's namespace.
    pub(crate) fn namespace(&self) -> String {
        format!("/proc/{}/ns/net", self.holder.id())
    }
}

/// The same command in that namespace. The started process is the command itself and not a wrapper.
pub(crate) fn within(namespace: &str, command: &Command) -> Command {
    let command = command.as_std();
    let mut within = Command::new("nsenter");
    within.env_clear().envs(inherited());
    within.arg(format!("--net={namespace}")).arg("--").arg(command.get_program()).args(command.get_args());
    if let Some(dir) = command.get_current_dir() {
        within.current_dir(dir);
    }
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => within.env(name, value),
            None => within.env_remove(name),
        };
    }
    within
}

/// A process in a new network namespace.
async fn namespace(lab: &Lab) -> Result<Process> {
    let mut command = Command::new("unshare");
    command.args(["--net", "sh", "-c", "echo ready; exec sleep infinity"]);
    let mut process = lab.spawn("namespace", command)?;
    let has_ended = eventually(LIMIT, async || {
        let has_ended = process.ended()?.is_some();
        ensure!(has_ended || process.stdout() == "ready\n", "`unshare --net` prints nothing");
        Ok(has_ended)
    })
    .await?;
    // This is an error and no panic, because a test may be skipped on a machine that does not allow this.
    ensure!(!has_ended, "`unshare --net`: {}", process.output().trim_end());
    Ok(process)
}

async fn ip(namespace: Option<&Process>, words: &str) -> Result<()> {
    let mut command = Command::new("ip");
    command.args(words.split(' '));
    if let Some(process) = namespace {
        command = within(&format!("/proc/{}/ns/net", process.id()), &command);
    }
    let ran = command.output().await.context("starting `ip` (package iproute2)")?;
    ensure!(ran.status.success(), "`ip {words}`: {}", String::from_utf8_lossy(&ran.stderr).trim_end());
    Ok(())
}

/// Connects this machine to the switch in a network that no interface of this machine is in. Returns the
/// network and the interface.
async fn cable_to(switch: &Process) -> Result<([u8; 3], String)> {
    let shown = Command::new("ip").args(["-o", "-4", "addr"]).output().await;
    let shown = shown.context("starting `ip` (package iproute2)")?.stdout;
    let shown = String::from_utf8_lossy(&shown);
    for step in 0..NETWORKS {
        let [.., second, third] = (std::process::id().wrapping_add(step) % NETWORKS).to_be_bytes();
        let prefix = [198, 18 + second, third];
        if shown.contains(&format!("inet 198.{}.{third}.", 18 + second)) {
            continue;
        }
        let name = format!("sb-{}-{third}", prefix[1]);
        match ip(None, &format!("link add {name} type veth peer name uplink netns {}", switch.id())).await {
            Ok(()) => return Ok((prefix, name)),
            // Another test has this interface, which has no address yet or no longer.
            Err(error) if error.to_string().contains("File exists") => {}
            Err(error) => return Err(error),
        }
    }
    bail!("every network of 198.18.0.0/15 is taken")
}

fn address([first, second, third]: [u8; 3], host: u8) -> IpAddr {
    Ipv4Addr::new(first, second, third, host).into()
}
