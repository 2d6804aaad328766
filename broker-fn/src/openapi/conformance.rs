//! Checks answers against the document. Every answer in a unit test of the routes is checked here.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, Method, StatusCode};
use jsonschema::Validator;
use serde_json::{Value, json};

use super::DOCUMENT;

static PARSED: LazyLock<Value> = LazyLock::new(|| serde_json::from_str(DOCUMENT).unwrap());

/// Validators of all schemas, by their JSON text. Each is made from the whole document, to resolve its
/// references.
static VALIDATORS: LazyLock<BTreeMap<String, Validator>> = LazyLock::new(|| {
    let mut found = Vec::new();
    collect_schemas(&PARSED["paths"], &mut found);
    collect_schemas(&PARSED["components"]["responses"], &mut found);
    let compile = |schema: Value| {
        let text = schema.to_string();
        let with_components = json!({"allOf": [schema], "components": PARSED["components"]});
        let options = jsonschema::options().should_validate_formats(true);
        (text, options.build(&with_components).expect("a schema is valid"))
    };
    found.into_iter().map(compile).collect()
});

fn collect_schemas(value: &Value, found: &mut Vec<Value>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                if name == "schema" {
                    found.push(value.clone());
                } else {
                    collect_schemas(value, found);
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| collect_schemas(item, found)),
        _ => {}
    }
}

fn resolved(value: &'static Value) -> &'static Value {
    match value["$ref"].as_str() {
        Some(reference) => PARSED.pointer(reference.trim_start_matches('#')).expect("it leads somewhere"),
        None => value,
    }
}

/// The path's entry in the document, if it has one.
fn path_item(path: &str) -> Option<&'static Value> {
    // This is the only path with two forms.
    let path = match path.strip_suffix('/') {
        // An empty name is an invalid name.
        Some("/groups/") => "/groups/-",
        Some(group) if group.strip_prefix("/groups/").is_some_and(|name| !name.contains('/')) => group,
        _ => path,
    };
    let fits = |template: &str| {
        let (mut template, mut path) = (template.split('/'), path.split('/').peekable());
        loop {
            match (template.next(), path.next()) {
                (None, None) => return true,
                (Some(part), Some(given)) if part == given => {}
                // Within a path, an empty name is an invalid name. At the end of a path, there is no name.
                (Some(part), Some(given))
                    if part.starts_with('{') && (!given.is_empty() || path.peek().is_some()) => {}
                _ => return false,
            }
        }
    };
    PARSED["paths"].as_object().unwrap().iter().find(|(template, _)| fits(template)).map(|(_, item)| item)
}

/// Panics if the document does not allow this answer.
pub(crate) fn assert_allowed(
    method: &Method,
    path: &str,
    status: StatusCode,
    headers: &HeaderMap,
    body: &[u8],
) {
    let what = || format!("{method} {path} → {status} {headers:?} {}", String::from_utf8_lossy(body));
    // HEAD is documented as GET, except for the body.
    let name = if method == Method::HEAD { "get".to_owned() } else { method.as_str().to_ascii_lowercase() };
    let Some(item) = path_item(path) else {
        assert!([400, 401, 403, 404, 503].contains(&status.as_u16()), "{}", what());
        return;
    };
    let Some(operation) = item.get(&name) else {
        assert!([400, 401, 403, 405, 503].contains(&status.as_u16()), "{}", what());
        return;
    };
    let response = &operation["responses"][status.as_str()];
    assert!(response.is_object(), "an undocumented status: {}", what());
    let response = resolved(response);
    for (name, header) in response["headers"].as_object().into_iter().flatten() {
        let Some(value) = headers.get(name) else {
            assert_eq!(header["required"], json!(false), "no `{name}`: {}", what());
            continue;
        };
        let value = json!(value.to_str().unwrap());
        assert!(VALIDATORS[&header["schema"].to_string()].is_valid(&value), "`{name}`: {}", what());
    }
    let media_type = headers.get(CONTENT_TYPE).map(|value| value.to_str().unwrap());
    let Some(content) = response["content"].as_object() else {
        assert!(media_type.is_none() && body.is_empty(), "an undocumented body: {}", what());
        return;
    };
    let media_type = media_type.unwrap_or_else(|| panic!("no content type: {}", what()));
    let documented = content
        .get(media_type)
        .or_else(|| content.get(media_type.split(';').next().unwrap()))
        .unwrap_or_else(|| panic!("an undocumented content type: {}", what()));
    if media_type.ends_with("json") && method != Method::HEAD {
        let body: Value = serde_json::from_slice(body).unwrap();
        if let Err(error) = VALIDATORS[&documented["schema"].to_string()].validate(&body) {
            panic!("{error}: {}", what());
        }
    }
}

/// Every operation: its path, its method, and its entry in the document.
fn operations() -> impl Iterator<Item = (&'static str, &'static str, &'static Value)> {
    PARSED["paths"].as_object().unwrap().iter().flat_map(|(path, item)| {
        let operations = item.as_object().unwrap().iter().filter(|(name, _)| *name != "parameters");
        operations.map(|(method, operation)| (path.as_str(), method.as_str(), operation))
    })
}

/// A method and a path for every operation.
pub(crate) fn requests() -> impl Iterator<Item = (String, String)> {
    operations().map(|(path, method, _)| {
        let path = path.replace("{group}", "g").replace("{addr}", "10.0.0.7:6379");
        (method.to_ascii_uppercase(), path)
    })
}

#[test]
fn every_example_is_as_its_schema_says() {
    let mut examples = 0;
    let mut check = |content: &Value| {
        for media in content.as_object().into_iter().flatten().map(|(_, media)| media) {
            let named =
                media["examples"].as_object().into_iter().flatten().map(|(_, example)| &example["value"]);
            for example in media.get("example").into_iter().chain(named) {
                VALIDATORS[&media["schema"].to_string()].validate(example).unwrap();
                examples += 1;
            }
        }
    };
    for (_, _, operation) in operations() {
        check(&operation["requestBody"]["content"]);
        for response in operation["responses"].as_object().unwrap().values() {
            check(&resolved(response)["content"]);
        }
    }
    assert!(examples > 100, "{examples}");
}

#[test]
fn every_operation_has_a_name_of_its_own() {
    let mut names: Vec<_> =
        operations().map(|(_, _, operation)| operation["operationId"].as_str().unwrap()).collect();
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count);
}
