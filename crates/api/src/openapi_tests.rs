use serde_json::Value;

use super::*;

/// Written by `SANDPAIL_WRITE_OPENAPI=1 cargo test -p sandpail-api openapi`.
const COMMITTED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../openapi.json");

#[test]
fn the_committed_document_is_that_of_the_routes() {
    let text = document();
    if std::env::var_os("SANDPAIL_WRITE_OPENAPI").is_some() {
        std::fs::write(COMMITTED, &text).unwrap();
    }
    let committed = std::fs::read_to_string(COMMITTED).unwrap_or_default();
    assert!(committed == text, "openapi.json is old: SANDPAIL_WRITE_OPENAPI=1 cargo test -p sandpail-api openapi");
}

#[test]
fn the_compatible_operations_are_there() {
    let document: Value = serde_json::from_str(&document()).unwrap();
    assert_eq!(document["openapi"], "3.1.0");
    let expected = [
        ("post", "/v1/sandbox", "createSandbox"),
        ("delete", "/v1/sandbox/{id}", "deleteSandbox"),
        ("get", "/v1/sandbox/{id}/running", "isSandboxRunning"),
        ("post", "/v1/sandbox/{id}/exec", "execCommand"),
        ("get", "/v1/sandbox/{id}/file/{path}", "readFile"),
        ("put", "/v1/sandbox/{id}/file/{path}", "writeFile"),
        ("post", "/v1/sandbox/{id}/session", "createSession"),
        ("delete", "/v1/sandbox/{id}/session/{sid}", "deleteSession"),
        ("get", "/v1/sandbox/{id}/pty", "ptyTerminal"),
        ("post", "/v1/sandbox/{id}/persist", "persistWorkspace"),
        ("post", "/v1/sandbox/{id}/hydrate", "hydrateWorkspace"),
        ("post", "/v1/sandbox/{id}/mount", "mountBucket"),
        ("post", "/v1/sandbox/{id}/unmount", "unmountBucket"),
        ("post", "/v1/sandbox/{id}/tunnel/{port}", "createTunnel"),
        ("delete", "/v1/sandbox/{id}/tunnel/{port}", "deleteTunnel"),
        ("get", "/v1/pool/stats", "getPoolStats"),
        ("post", "/v1/pool/prime", "primePool"),
        ("post", "/v1/pool/shutdown-prewarmed", "shutdownPrewarmed"),
        ("get", "/health", "healthCheck"),
        ("get", "/v1/openapi.json", "getOpenApiSchema"),
    ];
    for (method, path, id) in expected {
        assert_eq!(document["paths"][path][method]["operationId"], id, "{method} {path}");
    }
    let pty = &document["paths"]["/v1/sandbox/{id}/pty"]["get"];
    let names = |list: &Value| -> Vec<String> {
        let mut names: Vec<_> =
            list.as_array().unwrap().iter().map(|item| item["name"].as_str().unwrap().to_owned()).collect();
        names.sort();
        names
    };
    assert_eq!(names(&pty["parameters"]), ["Session-Id", "cols", "id", "rows", "session", "shell"]);
    let answers: Vec<_> = pty["responses"].as_object().unwrap().keys().cloned().collect();
    assert_eq!(answers, ["101", "400", "401", "502"]);
    assert_eq!(document["paths"]["/health"]["get"]["security"], serde_json::json!([{}]));
}

#[test]
fn every_reference_leads_somewhere_and_ids_are_unique() {
    let document: Value = serde_json::from_str(&document()).unwrap();
    let mut ids = std::collections::BTreeSet::new();
    for (_, item) in members(&document["paths"]) {
        for (_, operation) in members(item) {
            assert!(ids.insert(operation["operationId"].as_str().unwrap().to_owned()), "{operation}");
        }
    }
    check_references(&document, &document);
}

fn check_references(document: &Value, value: &Value) {
    match value {
        Value::Object(found) => {
            if let Some(reference) = found.get("$ref").and_then(Value::as_str) {
                assert!(document.pointer(reference.trim_start_matches('#')).is_some(), "{reference}");
            }
            found.values().for_each(|value| check_references(document, value));
        }
        Value::Array(found) => found.iter().for_each(|value| check_references(document, value)),
        _ => {}
    }
}

#[test]
fn the_page_needs_nothing_else() {
    let page = page();
    assert!(page.contains("execCommand") && page.contains("/v1/sandbox/{id}/file/{path}"));
    for outside in ["http://", "https://", "<script", "src=", "@import", "url("] {
        assert!(!page.contains(outside), "{outside}");
    }
}
