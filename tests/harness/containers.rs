//! A Compose file as it ships, run by podman with images that are built from this machine's programs
//! (`tests/scripts/images.sh`).

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tokio::process::Command;

use crate::host::COMPONENT;
use crate::lab::Lab;
use crate::runner::runner_program;

/// How long podman may take for one command.
const LIMIT: Duration = Duration::from_secs(90);

/// How long the images may take. The first time, a Debian is unpacked for the machines' image.
const IMAGES: Duration = Duration::from_secs(600);

/// How long a server in a container may take to answer. If a container was started again, this machine learns
/// its new hardware address only after some ten seconds.
const ANSWER: Duration = Duration::from_secs(30);

/// The containers of a file. Dropping this removes them. Those of a run that was killed are removed by the
/// next run.
#[derive(Debug)]
pub struct Containers {
    engine: Engine,
    file: PathBuf,
    secrets: Option<Secrets>,
}

/// The secrets that the nodes and the broker of a file require.
#[derive(Debug, Clone, Copy)]
pub struct Secrets {
    /// The broker's token.
    pub token: &'static str,
    /// The password of the Redis servers.
    pub password: &'static str,
}

/// Podman, with its configuration for this machine.
#[derive(Debug)]
pub struct Engine {
    /// A separate folder, so that podman's usual images, perhaps with the same names, are left alone.
    home: PathBuf,
    compose: PathBuf,
}

/// A limit for files and processes that is more than a container here needs.
const MANY: u64 = 20_000;

/// Podman's configuration files, in the engine's folder.
const SETTINGS: &str = "containers.conf";
const STORAGE: &str = "storage.conf";

/// The prefix of the names of containers, networks and volumes.
const PROJECT: &str = "sentinel-broker-tests";

/// The files that the Compose file mounts, relative to its folder, which is the repository here.
pub(crate) const MANIFEST: &str = "spin.toml";
pub(crate) const MOUNTED: &str = "target/wasm32-wasip2/release/broker_fn.wasm";

pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package is in the repository")
}

impl Engine {
    /// Makes the images. The local host stands in for Spin, unless there is a `spin`.
    ///
    /// # Errors
    ///
    /// If no container can be run here.
    pub async fn new(local_host: &Path) -> Result<Self> {
        ensure!(rustix::process::getuid().is_root(), "only root can reach the containers' network");
        let compose = root().join("target/podman-compose/bin/podman-compose");
        ensure!(compose.exists(), "podman-compose is not there (tests/scripts/setup.sh hosts)");
        let home = root().join("target/containers");
        fs::create_dir_all(&home)?;
        let mut last = anyhow::anyhow!("podman is not there");
        // First the machine's own configuration, then one that also works with the old control groups.
        for runtime in ["", "runtime = \"runc\"\ncgroup_manager = \"cgroupfs\"\n"] {
            // Podman sets limits that may be higher than the machine's, which can't be raised.
            let [files, processes] = [rustix::process::Resource::Nofile, rustix::process::Resource::Nproc]
                .map(|resource| rustix::process::getrlimit(resource).maximum.unwrap_or(MANY).min(MANY));
            let text = format!(
                "[containers]\ndefault_ulimits = [\"nofile={files}:{files}\", \"nproc={processes}:{processes}\"]\n\
                 [network]\nnetwork_config_dir = {:?}\n\
                 [engine]\nevents_logger = \"file\"\n{runtime}",
                home.join("networks")
            );
            let storage = format!(
                "[storage]\ndriver = \"overlay\"\ngraphroot = {:?}\nrunroot = {:?}\n",
                home.join("storage"),
                home.join("run")
            );
            fs::write(home.join(STORAGE), storage)?;
            fs::write(home.join(SETTINGS), text)?;
            let engine = Self { home: home.clone(), compose: compose.clone() };
            let tried = async {
                engine.make_images(local_host).await?;
                engine.podman(&["run", "--rm", "--network", "none", &node_image()?, "--version"]).await
            };
            match tried.await {
                Ok(_) => return Ok(engine),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn make_images(&self, local_host: &Path) -> Result<()> {
        let mut command = Command::new(root().join("tests/scripts/images.sh"));
        command.arg(runner_program()).arg(local_host).arg(COMPONENT);
        self.run(command, IMAGES).await.map(drop)
    }

    pub(crate) async fn podman(&self, args: &[&str]) -> Result<String> {
        let mut command = Command::new("podman");
        command.args(args);
        self.run(command, LIMIT).await
    }

    pub(crate) fn env(&self) -> [(&'static str, PathBuf); 2] {
        [("CONTAINERS_CONF", self.home.join(SETTINGS)), ("CONTAINERS_STORAGE_CONF", self.home.join(STORAGE))]
    }

    pub(crate) async fn podman_output(&self, args: &[&str]) -> Result<Output> {
        let mut command = Command::new("podman");
        command.args(args);
        self.output(&mut command, LIMIT).await
    }

    async fn output(&self, command: &mut Command, limit: Duration) -> Result<Output> {
        command.envs(self.env()).kill_on_drop(true);
        let output = tokio::time::timeout(limit, command.output()).await;
        let output = output.with_context(|| format!("{:?} takes too long", command.as_std()))?;
        output.with_context(|| format!("starting {:?}", command.as_std()))
    }

    async fn run(&self, mut command: Command, limit: Duration) -> Result<String> {
        let Output { status, stdout, stderr } = self.output(&mut command, limit).await?;
        let (stdout, stderr) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
        ensure!(status.success(), "{:?}: {status}\n{stdout}{stderr}", command.as_std());
        Ok(stdout.into_owned())
    }
}

/// The name of the nodes' image in the file.
pub(crate) fn node_image() -> Result<String> {
    image("-node:")
}

/// The name of Spin's image in the file.
pub(crate) fn spin_image() -> Result<String> {
    image("/spin:")
}

fn image(part: &str) -> Result<String> {
    let text = fs::read_to_string(root().join("deploy/compose.yaml"))?;
    let mut images = text.lines().filter_map(|line| line.trim().strip_prefix("image: "));
    let image = images.find(|image| image.contains(part)).map(str::to_owned);
    image.with_context(|| format!("there is no image for {part}"))
}

impl Containers {
    /// Starts what a file of the repository describes.
    pub async fn start(lab: &Lab, engine: Engine, file: &str) -> Result<Self> {
        let site = lab.dir().join("site");
        let path = site.join(file);
        for needed in [&path, &site.join(MOUNTED)] {
            fs::create_dir_all(needed.parent().context("it is in a folder")?)?;
        }
        fs::copy(root().join(file), &path)?;
        fs::copy(root().join(MANIFEST), site.join(MANIFEST))?;
        fs::copy(COMPONENT, site.join(MOUNTED))?;
        let containers = Self { engine, file: path, secrets: None };
        containers.compose(&["down", "--volumes", "--timeout", "1"]).await?;
        containers.compose(&["up", "--detach", "--no-build"]).await?;
        Ok(containers)
    }

    /// Sets the secrets, if the file's nodes and its broker require any.
    #[must_use]
    pub fn with(mut self, secrets: Secrets) -> Self {
        self.secrets = Some(secrets);
        self
    }

    /// Runs a command of `podman-compose` for this file.
    pub async fn compose(&self, args: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.engine.compose);
        command.args(["--project-name", PROJECT, "--file"]).arg(&self.file).args(args);
        self.engine.run(command, LIMIT).await
    }

    /// Runs a command of `podman` with the container of this service as its last argument.
    pub async fn podman(&self, args: &[&str], service: &str) -> Result<String> {
        self.engine.podman(&[args, &[&container(service)]].concat()).await
    }

    /// Runs a script in a service's container, and returns its output.
    pub async fn shell(&self, service: &str, script: &str) -> Result<String> {
        let args = ["exec", &container(service), "bash", "-euc", script];
        self.engine.podman(&args).await
    }

    /// Runs the health check that the file defines for a service, as Docker does, and podman does with
    /// systemd.
    ///
    /// # Errors
    ///
    /// If the check fails.
    pub async fn is_healthy(&self, service: &str) -> Result<()> {
        let test =
            self.podman(&["inspect", "--format", "{{json .Config.Healthcheck.Test}}"], service).await?;
        let words: Vec<String> = serde_json::from_str(&test)?;
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let ["CMD", words @ ..] = &words[..] else { anyhow::bail!("another kind of check: {words:?}") };
        self.engine.podman(&[&["exec", &container(service)], words].concat()).await.map(drop)
    }

    /// Removes a service's container and the containers that depend on it. With `with_volume`, removes its
    /// volume too.
    pub async fn remove(&self, service: &str, with_volume: bool) -> Result<()> {
        self.podman(&["rm", "--force", "--depend", "--time", "0"], service).await?;
        if with_volume {
            self.engine.podman(&["volume", "rm", &format!("{PROJECT}_{service}")]).await?;
        }
        Ok(())
    }

    /// Recreates a service's container, and starts it.
    pub async fn create(&self, service: &str) -> Result<()> {
        self.compose(&["up", "--detach", "--no-build", "--no-deps", service]).await.map(drop)
    }

    /// Disconnects a service from its network.
    pub async fn disconnect(&self, service: &str) -> Result<()> {
        self.engine.podman(&["network", "disconnect", &network(), &container(service)]).await.map(drop)
    }

    /// Connects a service again.
    pub async fn connect(&self, service: &str, addr: IpAddr) -> Result<()> {
        let args = ["network", "connect", "--ip", &addr.to_string(), &network(), &container(service)];
        self.engine.podman(&args).await.map(drop)
    }

    /// Runs the runner to its end in the nodes' network. Returns whether the exit code was 0, and the output.
    pub async fn runner(&self, args: &[&str]) -> Result<(bool, String)> {
        let (network, image) = (network(), node_image()?);
        let secrets = self.secrets.iter().flat_map(|Secrets { token, password }| {
            [
                "--env".to_owned(),
                format!("BROKER_TOKEN={token}"),
                "--env".to_owned(),
                format!("REDIS_PASSWORD={password}"),
            ]
        });
        let secrets: Vec<String> = secrets.collect();
        let secrets: Vec<&str> = secrets.iter().map(String::as_str).collect();
        let run = [&["run", "--rm", "--network", &network], &secrets[..], &[&image], args].concat();
        let output = self.engine.podman_output(&run).await?;
        Ok((output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned()))
    }

    /// What a service has written so far.
    pub async fn log(&self, service: &str) -> Result<String> {
        let output = self.engine.podman_output(&["logs", &container(service)]).await?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr))
    }

    /// The address of a service's container now.
    pub async fn addr(&self, service: &str) -> Result<IpAddr> {
        let text = self.podman(&["inspect"], service).await?;
        let all: Value = serde_json::from_str(&text)?;
        let addr = &all[0]["NetworkSettings"]["Networks"][network()]["IPAddress"];
        addr.as_str().context("no address")?.parse().with_context(|| format!("{service} has no address"))
    }

    /// The URL of a service's server, with its password.
    pub async fn url(&self, service: &str, port: u16) -> Result<String> {
        // Sentinels have no password.
        let password = self.secrets.filter(|_| port == 6379).map(|secrets| secrets.password);
        let login = password.map(|password| format!(":{password}@")).unwrap_or_default();
        let addr = self.addr(service).await?;
        // A container that was started again has another link-layer address, which not every podman
        // announces. For half a minute, packets from here would go to the old address. The flush prevents
        // that, if this machine has `ip`.
        let flush = ["neigh", "flush", "to", &addr.to_string()];
        let _ = Command::new("ip").args(flush).output().await;
        Ok(format!("redis://{login}{}", SocketAddr::new(addr, port)))
    }

    /// Sends a command to the server of a service at this port.
    pub async fn command<T: redis::FromRedisValue>(
        &self,
        service: &str,
        port: u16,
        words: &[impl redis::ToRedisArgs],
    ) -> Result<T> {
        let client = redis::Client::open(self.url(service, port).await?)?;
        let config = redis::AsyncConnectionConfig::new()
            .set_connection_timeout(Some(ANSWER))
            .set_response_timeout(Some(ANSWER));
        let connect = client.get_multiplexed_async_connection_with_config(&config);
        let mut connection = connect.await.with_context(|| format!("connecting to {service}"))?;
        let answer = redis::Cmd::new().arg(words).to_owned().query_async(&mut connection).await;
        answer.with_context(|| format!("{service} does not answer"))
    }
}

impl Drop for Containers {
    fn drop(&mut self) {
        let mut command = std::process::Command::new(&self.engine.compose);
        command.args(["--project-name", PROJECT, "--file"]).arg(&self.file);
        command.args(["down", "--volumes", "--timeout", "0"]).envs(self.engine.env());
        // The next run removes any leftovers.
        let _ = command.output();
    }
}

fn network() -> String {
    format!("{PROJECT}_nodes")
}

fn container(service: &str) -> String {
    format!("{PROJECT}_{service}_1")
}
