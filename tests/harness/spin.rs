//! Spin itself, if it is installed: `spin up` with the manifest that ships, beside the local host that stands
//! in for it.

use std::collections::BTreeMap;
use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::host::{StoreAt, Wasi};
use crate::process::Process;

/// The first version that can run one of the components.
const LEAST_VERSION: (u32, u32) = (2, 7);

/// The first version with WASI 0.3.
const LEAST_VERSION_WITH_WASI_0_3: (u32, u32) = (4, 1);

/// How long Spin may take to start. It compiles the component if it has not done so before.
const START_LIMIT: Duration = Duration::from_secs(120);

/// What Spin prints before its URL once it listens.
const SERVING: &str = "Serving http://";

/// A `spin` that can run a component.
#[derive(Debug, Clone)]
pub struct Spin {
    program: PathBuf,
    version: String,
}

/// The result of the search for Spin.
#[derive(Debug, Clone)]
pub enum Search {
    /// This one was found.
    Found(Spin),
    /// There is none, for this reason.
    None(String),
}

impl Spin {
    /// The `spin` that the variable `SPIN` names, or else the one on `PATH`.
    ///
    /// # Errors
    ///
    /// If `SPIN` names a program that does not run or is too old. No other program replaces it silently.
    pub fn search() -> Result<Search> {
        Self::search_by(env::var_os("SPIN"), env::var_os("PATH").as_deref())
    }

    /// Like [`Self::search`], with these values of the two variables.
    ///
    /// # Errors
    ///
    /// Like [`Self::search`].
    pub fn search_by(spin: Option<OsString>, path: Option<&OsStr>) -> Result<Search> {
        if let Some(named) = spin.filter(|named| !named.is_empty()) {
            let spin = Self::at(PathBuf::from(&named));
            let spin = spin.with_context(|| format!("SPIN is `{}`", named.to_string_lossy()))?;
            ensure!(spin.is_new_enough(), "SPIN is `{}`: {}", named.to_string_lossy(), spin.too_old());
            return Ok(Search::Found(spin));
        }
        let folders = path.map(env::split_paths).into_iter().flatten();
        let Some(program) = folders.map(|folder| folder.join("spin")).find(|program| program.is_file())
        else {
            return Ok(Search::None("there is no `spin` on PATH, and SPIN names none".into()));
        };
        // Other programs have that name too, for example a model checker.
        match Self::at(program) {
            Ok(spin) if spin.is_new_enough() => Ok(Search::Found(spin)),
            Ok(spin) => Ok(Search::None(spin.too_old())),
            Err(error) => Ok(Search::None(format!("the `spin` on PATH is of no use: {error:#}"))),
        }
    }

    fn at(program: PathBuf) -> Result<Self> {
        let output = Command::new(&program).arg("--version").output();
        let output = output.with_context(|| format!("running `{} --version`", program.display()))?;
        ensure!(output.status.success(), "`{} --version` ended with {}", program.display(), output.status);
        let text = String::from_utf8_lossy(&output.stdout);
        // Like `spin 4.1.0 (94a8fc8 2026-08-21)`.
        let version = text.trim().strip_prefix("spin ").and_then(|rest| rest.split_whitespace().next());
        let version = version.with_context(|| {
            format!("`{} --version` says {:?}, which is not what Spin says", program.display(), text.trim())
        })?;
        parse_version(version).with_context(|| format!("Spin has the version {version:?}"))?;
        Ok(Self { program, version: version.to_owned() })
    }

    fn is_new_enough(&self) -> bool {
        self.has(Wasi::V0_2)
    }

    /// Whether this Spin can run the component that is built for this version of WASI.
    #[must_use]
    pub fn has(&self, wasi: Wasi) -> bool {
        let least = match wasi {
            Wasi::V0_3 => LEAST_VERSION_WITH_WASI_0_3,
            Wasi::V0_2 => LEAST_VERSION,
        };
        parse_version(&self.version).is_ok_and(|version| version >= least)
    }

    fn too_old(&self) -> String {
        let (major, minor) = LEAST_VERSION;
        format!(
            "`{}` is Spin {}; a component needs {major}.{minor} or later",
            self.program.display(),
            self.version
        )
    }

    /// The version, like `4.1.0`.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Starts an application on a free port of 127.0.0.1, and waits until it listens. All its files are in
    /// this folder.
    pub fn up(
        &self,
        manifest: &Path,
        component: &Path,
        store: &StoreAt,
        variables: &BTreeMap<String, String>,
        dir: &Path,
    ) -> Result<SpinUp> {
        let text = fs::read_to_string(manifest)
            .with_context(|| format!("reading the manifest `{}`", manifest.display()))?;
        let manifest = dir.join("spin.toml");
        fs::write(&manifest, with_source(&text, component)?)?;
        let mut command = Command::new(&self.program);
        command.arg("up").arg("--from").arg(&manifest).args(["--listen", "127.0.0.1:0"]);
        command.arg("--state-dir").arg(dir.join("state")).current_dir(dir);
        let config = dir.join("runtime-config.toml");
        fs::write(&config, runtime_config(store))?;
        command.arg("--runtime-config-file").arg(config);
        for (name, value) in variables {
            command.env(format!("SPIN_VARIABLE_{}", name.to_uppercase()), value);
        }
        // `spin up` starts another process for the trigger, which does not end if `spin up` is killed.
        let mut process = Process::spawn_group("spin up", command.into(), dir)?;
        let started = Instant::now();
        let addr = loop {
            if let Some(addr) = serving(&process.stdout()) {
                break addr;
            }
            if let Some(status) = process.ended()? {
                bail!("`spin up` ended with {status}:\n{}", process.output());
            }
            ensure!(started.elapsed() < START_LIMIT, "`spin up` does not say where:\n{}", process.output());
            std::thread::sleep(Duration::from_millis(5));
        };
        Ok(SpinUp { process, addr })
    }
}

/// An application in Spin. It runs until this is dropped.
#[derive(Debug)]
pub struct SpinUp {
    process: Process,
    addr: SocketAddr,
}

impl SpinUp {
    /// The address on which it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The process that was started, which has started others.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.process
    }
}

/// The failures of instances that Spin prints. A correct component never has any.
pub(crate) fn failures_in(stderr: &str) -> Vec<String> {
    let failures = stderr.lines().filter(|line| line.starts_with("worker failed"));
    failures.map(|line| format!("spin up: {line}")).collect()
}

fn parse_version(version: &str) -> Result<(u32, u32)> {
    let mut numbers = version.split(['.', '-', '+']).map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Ok((major, minor)),
        _ => bail!("that is no version"),
    }
}

/// The address on which Spin listens, once it has printed it in a whole line.
fn serving(stdout: &str) -> Option<SocketAddr> {
    let (_, rest) = stdout.split_once(SERVING)?;
    let (addr, _) = rest.split_once('\n')?;
    addr.trim().parse().ok()
}

/// The manifest with this component instead of the one that `spin build` makes.
fn with_source(manifest: &str, component: &Path) -> Result<String> {
    // Spin would look for a relative path in the manifest's folder.
    let component = std::path::absolute(component)?;
    let (mut sources, mut lines) = (0, vec![]);
    for line in manifest.lines() {
        if line.starts_with("source = ") {
            sources += 1;
            // A basic string of TOML is escaped like a string of JSON.
            lines.push(format!("source = {}", serde_json::to_string(&component.display().to_string())?));
        } else {
            lines.push(line.to_owned());
        }
    }
    ensure!(sources == 1, "the manifest has {sources} lines `source = …`, not one");
    Ok(lines.join("\n"))
}

/// The configuration of Spin's store. A store of type `spin` without a path is in memory.
fn runtime_config(store: &StoreAt) -> String {
    let provider = match store {
        StoreAt::Memory => "type = \"spin\"".to_owned(),
        StoreAt::Path(path) => format!("type = \"spin\"\npath = {:?}", path.display().to_string()),
        StoreAt::Redis(url) => format!("type = \"redis\"\nurl = {url:?}"),
    };
    format!("[key_value_store.default]\n{provider}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_told_from_what_is_none() {
        assert_eq!(parse_version("4.1.0").unwrap(), (4, 1));
        assert_eq!(parse_version("10.0.0-pre0").unwrap(), (10, 0));
        for bad in ["", "4", "v4.1", "four.one"] {
            assert!(parse_version(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn where_it_listens_is_told_by_a_whole_line() {
        let said = "\nServing http://127.0.0.1:41234\nAvailable Routes:\n  broker-fn: http://127.0.0.1:41234 (wildcard)\n";
        assert_eq!(serving(said), Some("127.0.0.1:41234".parse().unwrap()));
        assert_eq!(serving("\nServing http://127.0.0.1:4"), None, "more digits may follow");
        assert_eq!(serving("error: no"), None);
    }

    #[test]
    fn the_manifest_that_ships_takes_another_source() {
        let text = fs::read_to_string(crate::host::MANIFEST).unwrap();
        let changed = with_source(&text, Path::new("/a b/c.wasm")).unwrap();
        assert!(changed.contains("\nsource = \"/a b/c.wasm\"\n"), "{changed}");
        assert_eq!(changed.lines().count(), text.lines().count());
        let here = env::current_dir().unwrap().join("c.wasm");
        let changed = with_source(&text, Path::new("c.wasm")).unwrap();
        assert!(changed.contains(&format!("\nsource = {here:?}\n")), "{changed}");
        assert!(with_source("[component]", Path::new("c.wasm")).is_err());
    }

    #[test]
    fn what_fails_in_spin_is_noted() {
        let said = "Logging component stdio\nworker failed: wasm trap: unreachable\n";
        assert_eq!(failures_in(said), ["spin up: worker failed: wasm trap: unreachable"]);
    }
}
