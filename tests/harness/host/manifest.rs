//! The parts of `spin.toml` that the host needs: the stores that the component may open, and its variables.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

/// The parts of a Spin manifest that the host implements.
#[derive(Debug, Deserialize)]
pub(super) struct Manifest {
    #[serde(default)]
    variables: BTreeMap<String, Variable>,
    trigger: Triggers,
    component: BTreeMap<String, Component>,
}

#[derive(Debug, Deserialize)]
struct Variable {
    default: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Triggers {
    http: Vec<HttpTrigger>,
}

#[derive(Debug, Deserialize)]
struct HttpTrigger {
    route: String,
    component: String,
}

#[derive(Debug, Deserialize)]
struct Component {
    /// The path of the component's code, relative to the manifest's folder.
    #[serde(default)]
    source: PathBuf,
    #[serde(default)]
    key_value_stores: BTreeSet<String>,
    #[serde(default)]
    variables: BTreeMap<String, String>,
}

impl Manifest {
    /// Reads a manifest of the only form that the host serves: a single component, on the route `/...`.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("reading `{}`", path.display()))?;
        Self::parse(&text).with_context(|| format!("in `{}`", path.display()))
    }

    fn parse(text: &str) -> Result<Self> {
        let manifest: Self = toml::from_str(text)?;
        let [HttpTrigger { route, component }] = manifest.trigger.http.as_slice() else {
            bail!("the local host serves exactly one HTTP trigger");
        };
        ensure!(route == "/...", "the local host serves the route `/...` only, not `{route}`");
        ensure!(
            manifest.component.contains_key(component),
            "the trigger's component `{component}` is missing"
        );
        Ok(manifest)
    }

    fn component(&self) -> &Component {
        &self.component[&self.trigger.http[0].component]
    }

    pub(super) fn source(&self) -> &Path {
        &self.component().source
    }

    /// The labels of the stores that the component may open.
    pub(super) fn stores(&self) -> BTreeSet<String> {
        self.component().key_value_stores.clone()
    }

    /// The component's variables, with these values for the application's variables instead of the defaults.
    pub(super) fn resolve(&self, given: &BTreeMap<String, String>) -> Result<HashMap<String, String>> {
        let mut values: HashMap<&str, &str> = HashMap::new();
        for (name, variable) in &self.variables {
            validate_name(name).map_err(|why| anyhow::anyhow!("variable {why}"))?;
            values.extend(variable.default.as_deref().map(|default| (name.as_str(), default)));
        }
        for (name, value) in given {
            ensure!(self.variables.contains_key(name), "no variable `{name}` is declared in the manifest");
            values.insert(name, value);
        }
        self.component()
            .variables
            .iter()
            .map(|(name, template)| {
                validate_name(name).map_err(|why| anyhow::anyhow!("variable {why}"))?;
                let value =
                    expand(template, &values).with_context(|| format!("resolving the variable `{name}`"))?;
                Ok((name.clone(), value))
            })
            .collect()
    }
}

/// Replaces each `{{ name }}` with its value.
fn expand(template: &str, values: &HashMap<&str, &str>) -> Result<String> {
    let mut expanded = String::new();
    let mut rest = template;
    while let Some((literal, after)) = rest.split_once("{{") {
        let (name, after) = after.split_once("}}").context("`{{` without `}}`")?;
        let name = name.trim();
        expanded.push_str(literal);
        expanded.push_str(values.get(name).with_context(|| format!("the variable `{name}` has no value"))?);
        rest = after;
    }
    expanded.push_str(rest);
    Ok(expanded)
}

/// Whether this can be a variable's name in Spin. If not, the reason.
pub(super) fn validate_name(name: &str) -> Result<(), String> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let valid = name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(allowed)
        && !name.ends_with('_')
        && !name.contains("__");
    if valid {
        Ok(())
    } else {
        Err(format!("{name:?}: a name is lower-case letters, digits and single underscores between them"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANIFEST: &str = r#"
        [variables]
        quorum = { default = "0" }
        api_token = { default = "", secret = true }
        zone = { required = true }
        [[trigger.http]]
        route = "/..."
        component = "broker"
        [component.broker]
        source = "broker.wasm"
        key_value_stores = ["default"]
        [component.broker.variables]
        quorum = "{{ quorum }}"
        place = "eu-{{zone}}-1"
    "#;

    fn given(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    #[test]
    fn component_variables_are_templates_over_defaults_and_given_values() {
        let manifest = Manifest::parse(MANIFEST).unwrap();
        let values = manifest.resolve(&given(&[("zone", "west")])).unwrap();
        assert_eq!(values["quorum"], "0");
        assert_eq!(values["place"], "eu-west-1");
        assert!(!values.contains_key("api_token"), "only what the component asks for");
        assert_eq!(manifest.stores(), BTreeSet::from(["default".to_owned()]));
    }

    #[test]
    fn undeclared_and_required_variables_are_errors() {
        let manifest = Manifest::parse(MANIFEST).unwrap();
        assert!(manifest.resolve(&given(&[("zone", "west"), ("zoom", "1")])).is_err());
        assert!(manifest.resolve(&given(&[])).is_err());
    }

    #[test]
    fn names_are_as_strict_as_in_spin() {
        for good in ["a", "api_token", "v2"] {
            assert!(validate_name(good).is_ok(), "{good}");
        }
        for bad in ["", "A", "2v", "_a", "a_", "a__b", "a-b", "ä"] {
            assert!(validate_name(bad).is_err(), "{bad}");
        }
    }
}
