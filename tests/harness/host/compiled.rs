//! Keeps the compiled component on disk. Compiling takes ten seconds, because the tests build the compiler
//! without optimisation.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::path::Path;

use tempfile::NamedTempFile;
use wasmtime::Engine;
use wasmtime::component::Component;

/// Compiles a component, or loads it if these bytes were compiled before for such an engine.
pub(super) fn compiled(engine: &Engine, path: &Path) -> wasmtime::Result<Component> {
    let bytes = fs::read(path)?;
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    engine.precompile_compatibility_hash().hash(&mut hasher);
    let folder = Path::new(super::COMPONENT).with_file_name("compiled");
    let kept = folder.join(format!("{:016x}.cwasm", hasher.finish()));
    if kept.exists() {
        #[expect(unsafe_code, reason = "machine code is loaded; there is no safe way to keep it")]
        // SAFETY: the file is whole, because it was renamed to this name, and only `keep` makes such files.
        return unsafe { Component::deserialize_file(engine, kept) };
    }
    let component = Component::new(engine, &bytes)?;
    // In a container there may be no such folder. Then the component is compiled at the next start, too.
    let _ = keep(&component, &folder, &kept);
    Ok(component)
}

fn keep(component: &Component, folder: &Path, kept: &Path) -> wasmtime::Result<()> {
    fs::create_dir_all(folder)?;
    let mut file = NamedTempFile::new_in(folder)?;
    file.write_all(&component.serialize()?)?;
    file.persist(kept)?;
    Ok(())
}
