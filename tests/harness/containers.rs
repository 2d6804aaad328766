//! A Compose file as it ships, run by podman on images of what this machine has (`tests/scripts/images.sh`).

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

/// How long the engine may take for one thing.
const LIMIT: Duration = Duration::from_secs(90);

/// How long a server in a container may take to answer: this machine learns only after some ten seconds that the hardware address of one
/// which has come back is another.
const ANSWER: Duration = Duration::from_secs(30);

/// The containers of a file, which end when this does. Those of a run that was killed end with the next.
#[derive(Debug)]
pub struct Containers {
    engine: Engine,
    file: PathBuf,
    secrets: Option<Secrets>,
}

/// What the nodes and the broker of a file ask for.
#[derive(Debug, Clone, Copy)]
pub struct Secrets {
    /// The broker's.
    pub token: &'static str,
    /// That of the Redis servers.
    pub password: &'static str,
}

/// Podman, and what it needs to know of this machine.
#[derive(Debug)]
pub struct Engine {
    /// A folder of its own: what podman has otherwise, images of the same names among it, is left alone.
    home: PathBuf,
    compose: PathBuf,
}

/// More files and processes than a container here needs.
const MANY: u64 = 20_000;

/// Podman's own files of configuration, in the engine's folder.
const SETTINGS: &str = "containers.conf";
const STORAGE: &str = "storage.conf";

/// What the containers, networks and volumes of tests are called.
const PROJECT: &str = "sentinel-broker-tests";

/// Of the file's folder, which is that of the repository here: what the file mounts.
pub(crate) const MANIFEST: &str = "spin.toml";
pub(crate) const MOUNTED: &str = "target/wasm32-wasip2/release/broker_fn.wasm";

pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package is in the repository")
}

impl Engine {
    /// Makes the images. In place of Spin there is this local host, unless there is a `spin`.
    ///
    /// # Errors
    ///
    /// Where no container can be run here.
    pub async fn new(local_host: &Path) -> Result<Self> {
        ensure!(rustix::process::getuid().is_root(), "only root can reach the containers' network");
        let compose = root().join("target/podman-compose/bin/podman-compose");
        ensure!(compose.exists(), "podman-compose is not there (tests/scripts/setup.sh hosts)");
        let home = root().join("target/containers");
        fs::create_dir_all(&home)?;
        let mut last = anyhow::anyhow!("podman is not there");
        // What the machine is set up for; and what works also where the old control groups are mounted.
        for runtime in ["", "runtime = \"runc\"\ncgroup_manager = \"cgroupfs\"\n"] {
            // Podman wants more than a machine may have, which can't be raised.
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
        self.run(command).await.map(drop)
    }

    pub(crate) async fn podman(&self, args: &[&str]) -> Result<String> {
        let mut command = Command::new("podman");
        command.args(args);
        self.run(command).await
    }

    pub(crate) fn env(&self) -> [(&'static str, PathBuf); 2] {
        [("CONTAINERS_CONF", self.home.join(SETTINGS)), ("CONTAINERS_STORAGE_CONF", self.home.join(STORAGE))]
    }

    pub(crate) async fn podman_output(&self, args: &[&str]) -> Result<Output> {
        let mut command = Command::new("podman");
        command.args(args);
        self.output(&mut command).await
    }

    async fn output(&self, command: &mut Command) -> Result<Output> {
        command.envs(self.env()).kill_on_drop(true);
        let output = tokio::time::timeout(LIMIT, command.output()).await;
        let output = output.with_context(|| format!("{:?} takes too long", command.as_std()))?;
        output.with_context(|| format!("starting {:?}", command.as_std()))
    }

    async fn run(&self, mut command: Command) -> Result<String> {
        let Output { status, stdout, stderr } = self.output(&mut command).await?;
        let (stdout, stderr) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
        ensure!(status.success(), "{:?}: {status}\n{stdout}{stderr}", command.as_std());
        Ok(stdout.into_owned())
    }
}

/// The name that the file gives to the nodes' image.
pub(crate) fn node_image() -> Result<String> {
    image("-node:")
}

/// The name that the file gives to Spin's image.
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

    /// Where the file's nodes and its broker ask for something.
    #[must_use]
    pub fn with(mut self, secrets: Secrets) -> Self {
        self.secrets = Some(secrets);
        self
    }

    /// Runs a command of `podman-compose` for this file.
    pub async fn compose(&self, args: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.engine.compose);
        command.args(["--project-name", PROJECT, "--file"]).arg(&self.file).args(args);
        self.engine.run(command).await
    }

    /// Runs a command of `podman`, of which the last word is the container of this service.
    pub async fn podman(&self, args: &[&str], service: &str) -> Result<String> {
        self.engine.podman(&[args, &[&container(service)]].concat()).await
    }

    /// Runs a script in a service's container; its output.
    pub async fn shell(&self, service: &str, script: &str) -> Result<String> {
        let args = ["exec", &container(service), "bash", "-euc", script];
        self.engine.podman(&args).await
    }

    /// Runs the check that the file has for a service, as Docker does, and podman where there is systemd.
    ///
    /// # Errors
    ///
    /// When it says that the service is not healthy.
    pub async fn is_healthy(&self, service: &str) -> Result<()> {
        let test =
            self.podman(&["inspect", "--format", "{{json .Config.Healthcheck.Test}}"], service).await?;
        let words: Vec<String> = serde_json::from_str(&test)?;
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let ["CMD", words @ ..] = &words[..] else { anyhow::bail!("another kind of check: {words:?}") };
        self.engine.podman(&[&["exec", &container(service)], words].concat()).await.map(drop)
    }

    /// Takes a service's container away, and with it what depends on it; its volume too, where there is one and it is to go.
    pub async fn remove(&self, service: &str, with_volume: bool) -> Result<()> {
        self.podman(&["rm", "--force", "--depend", "--time", "0"], service).await?;
        if with_volume {
            self.engine.podman(&["volume", "rm", &format!("{PROJECT}_{service}")]).await?;
        }
        Ok(())
    }

    /// Makes a service's container anew, and starts it.
    pub async fn create(&self, service: &str) -> Result<()> {
        self.compose(&["up", "--detach", "--no-build", "--no-deps", service]).await.map(drop)
    }

    /// Pulls the plug of its network.
    pub async fn disconnect(&self, service: &str) -> Result<()> {
        self.engine.podman(&["network", "disconnect", &network(), &container(service)]).await.map(drop)
    }

    /// Puts it in again.
    pub async fn connect(&self, service: &str, addr: IpAddr) -> Result<()> {
        let args = ["network", "connect", "--ip", &addr.to_string(), &network(), &container(service)];
        self.engine.podman(&args).await.map(drop)
    }

    /// Runs the runner to its end in the nodes' network; whether it ended with exit code 0, and what it said.
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

    /// The address that a service's container has now.
    pub async fn addr(&self, service: &str) -> Result<IpAddr> {
        let text = self.podman(&["inspect"], service).await?;
        let all: Value = serde_json::from_str(&text)?;
        let addr = &all[0]["NetworkSettings"]["Networks"][network()]["IPAddress"];
        addr.as_str().context("no address")?.parse().with_context(|| format!("{service} has no address"))
    }

    /// Where the server of a service answers, with its password.
    pub async fn url(&self, service: &str, port: u16) -> Result<String> {
        // No Sentinel asks for one.
        let password = self.secrets.filter(|_| port == 6379).map(|secrets| secrets.password);
        let login = password.map(|password| format!(":{password}@")).unwrap_or_default();
        let addr = self.addr(service).await?;
        // A container that was started again has another link-layer address, which not every podman announces: for half a minute what is sent
        // from here would go to the old one. Without `ip`, it does.
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
        // What is left over ends with the next run.
        let _ = command.output();
    }
}

fn network() -> String {
    format!("{PROJECT}_nodes")
}

fn container(service: &str) -> String {
    format!("{PROJECT}_{service}_1")
}
