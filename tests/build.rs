//! Builds what ships, the component for either kind of host and the runner, so that the tests run exactly that.
//!
//! Both go into a target folder of their own: the cargo that runs this script holds the lock of the usual one.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// What the outer cargo, clippy or CI set for their own build, and must not reach into the nested one.
const NOT_INHERITED: [&str; 8] = [
    "CARGO_BUILD_TARGET",
    "CARGO_BUILD_TARGET_DIR",
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_TARGET_DIR",
    "CLIPPY_ARGS",
    "RUSTC",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTFLAGS",
];

fn main() {
    let package = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let root = package.parent().expect("this package is in the workspace's folder");
    for file in ["Cargo.toml", "Cargo.lock", "broker-fn/Cargo.toml", "runner/Cargo.toml"] {
        rerun_if_changed(&root.join(file));
    }
    rerun_if_changed(&root.join("tests/build.rs"));

    let target = root.join("target/artifacts");
    for (manifest, variable) in
        [("spin-wasi-0.2.toml", "BROKER_FN_WASI_0_2_WASM"), ("spin.toml", "BROKER_FN_WASM")]
    {
        let manifest = root.join(manifest);
        rerun_if_changed(&manifest);
        let command = component_build_command(&manifest);
        let mut words = command.split_whitespace().skip(1);
        // In one folder, where the second takes what the first has compiled.
        let mut arguments = vec![];
        while let Some(word) = words.next() {
            if word == "--target-dir" {
                words.next();
            } else {
                arguments.push(word);
            }
        }
        cargo(root, &target, arguments.into_iter());
        let built = target.join("wasm32-wasip2/release/broker_fn.wasm");
        let kept = target.join(variable.to_lowercase());
        fs::copy(&built, kept.with_extension("wasm")).expect("what was built can be copied");
        fs::copy(built.with_extension("d"), kept.with_extension("d")).expect("and what it was built of");
        export(variable, &kept.with_extension("wasm"));
    }

    cargo(root, &target, ["build", "--release", "-p", "runner"].into_iter());
    export("SENTINEL_RUNNER", &target.join("release/sentinel-runner"));
}

/// The command that `spin build` runs: `command = "cargo …"` in the manifest.
fn component_build_command(manifest: &Path) -> String {
    let text = fs::read_to_string(manifest)
        .unwrap_or_else(|error| panic!("reading {} for its build command: {error}", manifest.display()));
    let command = text.lines().find_map(|line| {
        let value = line.trim().strip_prefix("command")?.trim_start().strip_prefix('=')?;
        value.trim().strip_prefix('"')?.strip_suffix('"')
    });
    match command {
        Some(command) if command.starts_with("cargo ") => command.to_owned(),
        _ => panic!("{} has no line `command = \"cargo …\"`", manifest.display()),
    }
}

/// Runs cargo with these arguments.
fn cargo<'a>(root: &Path, target: &Path, arguments: impl Iterator<Item = &'a str>) {
    let mut command = Command::new(env::var_os("CARGO").expect("cargo tells its build scripts where it is"));
    command.args(arguments).arg("--target-dir").arg(target).current_dir(root);
    for variable in NOT_INHERITED {
        command.env_remove(variable);
    }
    let output = command.output().unwrap_or_else(|error| panic!("running {command:?}: {error}"));
    if !output.status.success() {
        eprintln!("{}", String::from_utf8_lossy(&output.stderr));
        panic!("{command:?} failed; its output is above");
    }
}

/// Names an artifact for the crate's `env!`, and reruns this script when a source of it changes.
fn export(variable: &str, artifact: &Path) {
    println!("cargo:rustc-env={variable}={}", artifact.display());
    let dep_info = artifact.with_extension("d");
    let text = fs::read_to_string(&dep_info).unwrap_or_else(|error| {
        panic!("reading the sources of {variable} from {}: {error}", dep_info.display())
    });
    // As in a makefile: `artifact: source source …`, where a space within a name is escaped.
    let (_, sources) = text.split_once(": ").expect("dep-info names an artifact and its sources");
    let mut name = String::new();
    for word in sources.split_whitespace() {
        if let Some(unfinished) = word.strip_suffix('\\') {
            name.push_str(unfinished);
            name.push(' ');
        } else {
            name.push_str(word);
            rerun_if_changed(Path::new(&name));
            name.clear();
        }
    }
}

fn rerun_if_changed(path: &Path) {
    println!("cargo:rerun-if-changed={}", path.display());
}
