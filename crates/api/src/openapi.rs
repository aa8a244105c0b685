//! The OpenAPI document, made from the handlers, and a page of it.

use std::fmt::Write;

use serde_json::Value;
use utoipa::OpenApi;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};

const TITLE: &str = "sandpail";

#[derive(OpenApi)]
#[openapi(
    info(
        title = "sandpail",
        description = "Sandboxes with buckets mounted into them. Every error is `{\"error\": \"…\", \"code\": \"…\"}`.",
        license(name = "MIT OR Apache-2.0", identifier = "MIT OR Apache-2.0"),
    ),
    modifiers(&Bearer),
    security(("bearer" = [])),
    tags(
        (name = "sandboxes"), (name = "commands"), (name = "files"), (name = "sessions"), (name = "terminals"),
        (name = "archives"), (name = "mounts"), (name = "egress"), (name = "processes"), (name = "objects"), (name = "tunnels"),
        (name = "pool"), (name = "service"),
    ),
)]
struct Base;

struct Bearer;

impl utoipa::Modify for Bearer {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let scheme = SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build());
        openapi.components.get_or_insert_default().add_security_scheme("bearer", scheme);
    }
}

/// The document before the routes are added.
pub(crate) fn base() -> utoipa::openapi::OpenApi {
    Base::openapi()
}

/// The whole document as JSON, with a line break at its end.
pub fn document() -> String {
    let mut openapi = crate::routes::documented().into_openapi();
    // The router's way of writing "all that follows" is not the document's.
    let paths = std::mem::take(&mut openapi.paths.paths);
    openapi.paths.paths = paths.into_iter().map(|(path, item)| (path.replace("{*", "{"), item)).collect();
    // A document of our own types always serializes.
    let mut text = openapi.to_pretty_json().unwrap_or_else(|_| "{}".to_owned());
    text.push('\n');
    text
}

/// The document as one page that needs nothing else.
pub(crate) fn page() -> String {
    let document: Value = serde_json::from_str(&document()).unwrap_or_default();
    let mut html = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>{TITLE} API</title>\
         <meta name=\"viewport\" content=\"width=device-width\"><style>{STYLE}</style><h1>{TITLE} API</h1>"
    );
    write_text(&mut html, "p", document["info"]["description"].as_str().unwrap_or(""));
    for (path, item) in members(&document["paths"]) {
        for (method, operation) in members(item) {
            write_operation(&mut html, path, method, operation);
        }
    }
    html.push_str("<h2>Schemas</h2>");
    for (name, schema) in members(&document["components"]["schemas"]) {
        let json = serde_json::to_string_pretty(schema).unwrap_or_default();
        write_details(&mut html, &format!("<code>{}</code>", escape(name)), &format!("<pre>{}</pre>", escape(&json)));
    }
    html
}

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;\
    color-scheme:light dark}details{border:1px solid #8886;border-radius:6px;margin:.4rem 0;padding:.3rem .8rem}\
    summary{cursor:pointer}b{display:inline-block;min-width:4.5rem}pre{overflow:auto}td{padding:.1rem .8rem .1rem 0;\
    vertical-align:top}";

fn write_operation(html: &mut String, path: &str, method: &str, operation: &Value) {
    let text = |name: &str| escape(operation[name].as_str().unwrap_or(""));
    let summary = format!(
        "<b>{}</b> <code>{}</code> {} ({})",
        method.to_uppercase(),
        escape(path),
        text("summary"),
        text("operationId")
    );
    let mut body = format!("<p>{}</p><table>", text("description"));
    for parameter in operation["parameters"].as_array().into_iter().flatten() {
        let member = |name: &str| escape(parameter[name].as_str().unwrap_or(""));
        write_row(&mut body, &format!("{} ({})", member("name"), member("in")), &member("description"));
    }
    for (kind, content) in members(&operation["requestBody"]["content"]) {
        write_row(&mut body, &format!("body, {}", escape(kind)), &escape(&schema_name(content)));
    }
    for (status, response) in members(&operation["responses"]) {
        let names: Vec<_> = members(&response["content"]).map(|(_, content)| escape(&schema_name(content))).collect();
        let description = escape(response["description"].as_str().unwrap_or(""));
        write_row(&mut body, status, &format!("{description} {}", names.join(", ")));
    }
    body.push_str("</table>");
    write_details(html, &summary, &body);
}

fn members(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

fn schema_name(content: &Value) -> String {
    let reference = content["schema"]["$ref"].as_str().unwrap_or("");
    reference.rsplit('/').next().unwrap_or("").to_owned()
}

// Writing to a string does not fail.

fn write_row(html: &mut String, left: &str, right: &str) {
    let _ = write!(html, "<tr><td><code>{left}</code><td>{right}</tr>");
}

fn write_details(html: &mut String, summary: &str, body: &str) {
    let _ = write!(html, "<details><summary>{summary}</summary>{body}</details>");
}

fn write_text(html: &mut String, tag: &str, text: &str) {
    let _ = write!(html, "<{tag}>{}</{tag}>", escape(text));
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
#[path = "openapi_tests.rs"]
mod tests;
