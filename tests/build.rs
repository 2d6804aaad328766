//! Builds what ships, so that the tests run exactly that, and sets the variables for the crate's `env!`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

const SCRIPT: &str = "tests/scripts/artifacts.sh";

/// The artifacts in the script's output folder, and the variables that contain their paths.
const ARTIFACTS: [(&str, &str); 3] = [
    ("broker_fn.wasm", "BROKER_FN_WASM"),
    ("broker_fn_wasi_0_2.wasm", "BROKER_FN_WASI_0_2_WASM"),
    ("release/sentinel-runner", "SENTINEL_RUNNER"),
];

fn main() {
    let package = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let root = package.parent().expect("this package is in the workspace's folder");
    let sources = ["Cargo.toml", "Cargo.lock", "spin.toml", "spin-wasi-0.2.toml", "broker-fn/Cargo.toml"];
    for file in sources.iter().chain(&["runner/Cargo.toml", "tests/build.rs", SCRIPT]) {
        rerun_if_changed(&root.join(file));
    }
    let output = Command::new(root.join(SCRIPT)).output();
    let output = output.unwrap_or_else(|error| panic!("running {SCRIPT}: {error}"));
    if !output.status.success() {
        eprintln!("{}", String::from_utf8_lossy(&output.stderr));
        panic!("{SCRIPT} failed; its output is above");
    }
    for (artifact, variable) in ARTIFACTS {
        export(variable, &root.join("target/artifacts").join(artifact));
    }
}

/// Sets the variable of an artifact for the crate's `env!`, and reruns this script when one of its sources
/// changes.
fn export(variable: &str, artifact: &Path) {
    println!("cargo:rustc-env={variable}={}", artifact.display());
    let dep_info = artifact.with_extension("d");
    let text = fs::read_to_string(&dep_info).unwrap_or_else(|error| {
        panic!("reading the sources of {variable} from {}: {error}", dep_info.display())
    });
    // As in a makefile: `artifact: source source …`. A space within a name is escaped.
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
