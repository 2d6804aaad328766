//! The pods of `deploy/kubernetes` as containers. Each follows its manifest, keeps its name and its volume,
//! and gets another address with every start. A name server resolves their names. As in a cluster, it answers
//! at once, even if a name has no address any more.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use http::Method;
use serde_json::Value;

use crate::containers::{Engine, MANIFEST, MOUNTED, Secrets, node_image, root, spin_image};
use crate::host::COMPONENT;
use crate::http::Request;
use crate::lab::Lab;

const PREFIX: &str = "sentinel-broker-tests-pods";

const NAMESPACE: &str = "shop";

/// The first two addresses of the network belong to its gateway and to the name server.
const NETWORK: [u8; 3] = [10, 89, 9];

/// What the manifests describe, running here.
#[derive(Debug)]
pub struct Pods {
    engine: Engine,
    secrets: Secrets,
    /// The container of each workload.
    specs: BTreeMap<String, Value>,
    addrs: BTreeMap<String, Ipv4Addr>,
    next: u8,
    dir: PathBuf,
}

/// The workloads of a file, by their names.
fn workloads(file: &str) -> Result<Vec<(String, Value)>> {
    let text = fs::read_to_string(root().join("deploy/kubernetes").join(file))?;
    let documents: Vec<Value> = serde_saphyr::from_multiple(&text)?;
    let workload = |document: Value| {
        let container = document.pointer("/spec/template/spec/containers/0")?.clone();
        Some((document.pointer("/metadata/name")?.as_str()?.to_owned(), container))
    };
    Ok(documents.into_iter().filter_map(workload).collect())
}

/// The contents of the ConfigMaps of a file.
fn config_files(file: &str) -> Result<BTreeMap<String, String>> {
    let text = fs::read_to_string(root().join("deploy/kubernetes").join(file))?;
    let documents: Vec<Value> = serde_saphyr::from_multiple(&text)?;
    let maps = documents.iter().filter(|document| document["kind"] == "ConfigMap");
    let entries = maps.filter_map(|map| map["data"].as_object()).flatten();
    // HAProxy 3.1 and later has this option, and Debian 12 has HAProxy 2.6.
    let text = |text: &str| text.replace(" init-state fully-down", "");
    Ok(entries.filter_map(|(name, file)| Some((name.clone(), text(file.as_str()?)))).collect())
}

fn addr(host: u8) -> Ipv4Addr {
    Ipv4Addr::new(NETWORK[0], NETWORK[1], NETWORK[2], host)
}

fn runner_token(secrets: Secrets) -> String {
    format!("runner-{}", secrets.token)
}

fn container(pod: &str) -> String {
    format!("{PREFIX}-{pod}")
}

impl Pods {
    /// Starts the broker and the name server, and no node yet.
    pub async fn new(lab: &Lab, engine: Engine, secrets: Secrets) -> Result<Self> {
        let dir = lab.dir().join("pods");
        fs::create_dir_all(dir.join("secret"))?;
        let app = dir.join("app");
        fs::create_dir_all(app.join(MOUNTED).parent().context("it is in a folder")?)?;
        fs::write(dir.join("secret/api-token"), secrets.token)?;
        fs::write(dir.join("secret/runner-token"), runner_token(secrets))?;
        fs::write(dir.join("secret/redis-password"), secrets.password)?;
        fs::write(dir.join("secret/redis.conf"), format!("requirepass {}", secrets.password))?;
        fs::write(dir.join("hosts"), "")?;
        fs::copy(root().join(MANIFEST), app.join(MANIFEST))?;
        fs::copy(COMPONENT, app.join(MOUNTED))?;
        let files = [
            "spin/broker.yaml",
            "nodes/redis.yaml",
            "nodes/sentinel.yaml",
            "nodes/runner.yaml",
            "haproxy/haproxy.yaml",
        ];
        fs::create_dir_all(dir.join("config"))?;
        for (name, text) in config_files("haproxy/haproxy.yaml")? {
            fs::write(dir.join("config").join(name), text)?;
        }
        let mut specs = BTreeMap::new();
        for file in files {
            specs.extend(workloads(file)?);
        }
        let mut pods = Self { engine, secrets, specs, addrs: BTreeMap::new(), next: 10, dir };
        clear(&pods.engine);
        let subnet = format!("{}/24", addr(0));
        pods.engine.podman(&["network", "create", "--disable-dns", "--subnet", &subnet, PREFIX]).await?;
        let (hosts, dns) = (format!("{}:/hosts", pods.dir.join("hosts").display()), addr(2).to_string());
        let run = [
            "run",
            "--detach",
            "--name",
            &container("dns"),
            "--network",
            PREFIX,
            "--ip",
            &dns,
            "--volume",
            &hosts,
        ];
        let serve = [
            "localhost/sentinel-broker-dns:0.1.0",
            "--keep-in-foreground",
            "--user=root",
            "--group=root",
            "--pid-file=/tmp/pid",
            "--no-resolv",
            "--no-hosts",
        ];
        // The name server has all names below `svc`. A name that it does not have has no address.
        let names = ["--addn-hosts=/hosts", "--local=/svc/", "--local=/cluster.local/", "--local-ttl=0"];
        pods.engine.podman(&[&run[..], &serve, &names].concat()).await?;
        pods.start("sentinel-broker").await?;
        Ok(pods)
    }

    /// Starts a pod, such as `redis-0`. It has an address that no pod has had before.
    pub async fn start(&mut self, pod: &str) -> Result<()> {
        self.next += 1;
        let at = addr(self.next);
        let mut run = vec!["--detach".to_owned(), format!("--name={}", container(pod)), format!("--ip={at}")];
        run.extend(self.like_a_pod(pod)?);
        self.run(&run).await?;
        self.addrs.insert(pod.to_owned(), at);
        self.tell_names().await
    }

    /// Deletes a pod, and keeps its volume. Without `kills`, the pod gets SIGTERM first.
    pub async fn delete(&mut self, pod: &str, kills: bool) -> Result<()> {
        let time = if kills { "0" } else { "60" };
        if kills {
            self.engine.podman(&["kill", &container(pod)]).await?;
        }
        self.engine.podman(&["rm", "--force", "--time", time, &container(pod)]).await?;
        self.addrs.remove(pod);
        self.tell_names().await
    }

    /// Runs the runner's Job to its end, or the runner with other arguments. Returns whether the exit code
    /// was 0, and the output.
    pub async fn job(&self, words: Option<&[&str]>) -> Result<(bool, String)> {
        let mut run = vec!["run".to_owned(), "--rm".to_owned()];
        run.extend(self.like_a_pod("sentinel-runner")?);
        if let Some(words) = words {
            let args = self.words("sentinel-runner", "args").len();
            run.truncate(run.len() - args);
            run.extend(words.iter().map(|word| (*word).to_owned()));
        }
        let run: Vec<&str> = run.iter().map(String::as_str).collect();
        let output = self.engine.podman_output(&run).await?;
        Ok((output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned()))
    }

    /// Sends a command to the server of a pod at this port.
    pub async fn command<T: redis::FromRedisValue>(&self, pod: &str, port: u16, words: &[&str]) -> Result<T> {
        let url = self.url(pod, port)?;
        let mut connection = redis::Client::open(url)?.get_multiplexed_async_connection().await?;
        Ok(redis::Cmd::new().arg(words).to_owned().query_async(&mut connection).await?)
    }

    /// Whether a pod is ready, by its manifest's probe.
    pub async fn is_ready(&self, pod: &str) -> Result<bool> {
        let probe = &self.spec(pod).1["readinessProbe"];
        if let Some(words) = probe.pointer("/exec/command").and_then(Value::as_array) {
            let container = container(pod);
            let words: Vec<&str> = words.iter().filter_map(Value::as_str).collect();
            let exec = [&["exec", container.as_str()][..], &words].concat();
            return Ok(self.engine.podman_output(&exec).await?.status.success());
        }
        let get = probe.get("httpGet").context("a probe by HTTP")?;
        let (path, port) = (get["path"].as_str().context("a path")?, &get["port"]);
        let ports = self.spec(pod).1["ports"].as_array().into_iter().flatten();
        let mut named = ports.filter(|one| one["name"] == *port);
        let port =
            named.next().and_then(|one| one["containerPort"].as_u64()).context("a port of that name")?;
        let at = SocketAddr::new(IpAddr::V4(*self.addrs.get(pod).context("it runs")?), u16::try_from(port)?);
        Ok(Request::new(at, Method::GET, path).send().await.is_ok_and(|reply| reply.status == 200))
    }

    /// The URL of a pod's server, with its password.
    pub fn url(&self, pod: &str, port: u16) -> Result<String> {
        let at = self.addrs.get(pod).with_context(|| format!("{pod} does not run"))?;
        let login = if port < 26379 { format!(":{}@", self.secrets.password) } else { String::new() };
        Ok(format!("redis://{login}{}", SocketAddr::new(IpAddr::V4(*at), port)))
    }

    /// What a pod has written so far.
    pub async fn log(&self, pod: &str) -> Result<String> {
        let output = self.engine.podman_output(&["logs", &container(pod)]).await?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr))
    }

    async fn run(&self, words: &[String]) -> Result<String> {
        let words: Vec<&str> = ["run"].into_iter().chain(words.iter().map(String::as_str)).collect();
        self.engine.podman(&words).await
    }

    /// The workload of a pod.
    fn spec(&self, pod: &str) -> (&str, &Value) {
        let is_of = |name: &str| {
            pod == name
                || pod
                    .strip_prefix(name)
                    .is_some_and(|rest| rest.strip_prefix('-').is_some_and(|n| n.parse::<u8>().is_ok()))
        };
        let (name, spec) = self.specs.iter().find(|(name, _)| is_of(name)).expect("a pod of the manifests");
        (name, spec)
    }

    fn words(&self, pod: &str, field: &str) -> Vec<String> {
        let words = self.spec(pod).1[field].as_array().into_iter().flatten();
        words.filter_map(|word| Some(word.as_str()?.to_owned())).collect()
    }

    /// The arguments of `podman run` that make a container from a pod's manifest.
    fn like_a_pod(&self, pod: &str) -> Result<Vec<String>> {
        let (workload, spec) = self.spec(pod);
        let mut env = BTreeMap::new();
        let expanded = |text: &str, env: &BTreeMap<String, String>| {
            env.iter().fold(text.to_owned(), |text, (name, value)| text.replace(&format!("$({name})"), value))
        };
        for entry in spec["env"].as_array().into_iter().flatten() {
            let name = entry["name"].as_str().context("a name")?.to_owned();
            let value = match (entry["value"].as_str(), entry.pointer("/valueFrom/fieldRef/fieldPath")) {
                (Some(value), _) => expanded(value, &env),
                (None, Some(path)) if path == "metadata.name" => pod.to_owned(),
                (None, Some(path)) if path == "metadata.namespace" => NAMESPACE.to_owned(),
                _ => match entry.pointer("/valueFrom/secretKeyRef/key").and_then(Value::as_str) {
                    Some("api-token") => self.secrets.token.to_owned(),
                    Some("runner-token") => runner_token(self.secrets),
                    key => anyhow::bail!("{pod}: no value for {name}, {key:?}"),
                },
            };
            env.insert(name, value);
        }
        let (dns, secret) = (addr(2), self.dir.join("secret"));
        let mut run = vec![
            format!("--network={PREFIX}"),
            format!("--hostname={pod}"),
            format!("--dns={dns}"),
            format!("--dns-search={NAMESPACE}.svc"),
            "--read-only".to_owned(),
        ];
        run.extend(env.iter().map(|(name, value)| format!("--env={name}={value}")));
        for mount in spec["volumeMounts"].as_array().into_iter().flatten() {
            let (name, path) =
                (mount["name"].as_str().context("a name")?, mount["mountPath"].as_str().context("a path")?);
            run.push(match name {
                "secrets" => format!("--volume={}:{path}:ro", secret.display()),
                "tmp" => format!("--tmpfs={path}"),
                "config" => format!("--volume={}:{path}:ro", self.dir.join("config").display()),
                _ => format!("--volume={PREFIX}-{pod}-{name}:{path}"),
            });
        }
        if workload == "sentinel-broker" {
            // Instead of the image that would be pulled, and at the port of its Service.
            run.push(format!("--volume={}:/app:ro", self.dir.join("app").display()));
            run.push(spin_image()?);
        } else if workload == "redis-haproxy" {
            run.push(spec["image"].as_str().context("an image")?.to_owned());
        } else {
            ensure!(
                spec["image"].as_str().is_some_and(|image| image.contains("-node:")),
                "{pod}: another image"
            );
            run.push(node_image()?);
        }
        run.extend(self.words(pod, "command"));
        run.extend(self.words(pod, "args").iter().map(|word| match word.as_str() {
            from if from.starts_with("--from=") => "--from=/app/spin.toml".to_owned(),
            "--listen=0.0.0.0:3000" => "--listen=0.0.0.0:80".to_owned(),
            word => expanded(word, &env),
        }));
        Ok(run)
    }

    /// Gives the name server the addresses of all pods.
    async fn tell_names(&self) -> Result<()> {
        let line = |(pod, at): (&String, &Ipv4Addr)| {
            let (workload, _) = self.spec(pod);
            let name = if workload == pod { pod.clone() } else { format!("{pod}.{workload}") };
            format!("{at} {name}.{NAMESPACE}.svc {name}.{NAMESPACE}.svc.cluster.local\n")
        };
        fs::write(self.dir.join("hosts"), self.addrs.iter().map(line).collect::<String>())?;
        self.engine.podman(&["kill", "--signal", "HUP", &container("dns")]).await.map(drop)
    }
}

/// Removes everything that was made here, also by a run that was killed.
fn clear(engine: &Engine) {
    let script = format!(
        "podman ps --all --quiet --filter name={PREFIX} | xargs -r podman rm --force --time 0; \
         podman volume ls --quiet --filter name={PREFIX} | xargs -r podman volume rm --force; \
         podman network rm --force {PREFIX}"
    );
    let mut command = std::process::Command::new("sh");
    command.args(["-c", &script]).envs(engine.env());
    // The next run removes any leftovers.
    let _ = command.output();
}

impl Drop for Pods {
    fn drop(&mut self) {
        clear(&self.engine);
    }
}
