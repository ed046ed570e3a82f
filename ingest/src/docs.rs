//! The specifications and the Swagger page. Everything is embedded in the binary and needs no network.

use actix_web::{
    HttpRequest, HttpResponse,
    http::header::{CONTENT_ENCODING, CONTENT_SECURITY_POLICY, HeaderName, LOCATION, X_FRAME_OPTIONS},
    web::Data,
};
use web::problem::{Code, Problem};

const ASYNCAPI: &str = include_str!("../../docs/asyncapi.yaml");

/// Restricts what the pages may load, and forbids framing: people type a credential there.
const POLICY: (HeaderName, &str) = (
    CONTENT_SECURITY_POLICY,
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; font-src 'self' data:; \
     connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
);
/// The same for browsers that do not support `frame-ancestors`.
const NO_FRAMES: (HeaderName, &str) = (X_FRAME_OPTIONS, "DENY");

/// The OpenAPI document as JSON.
pub struct Document(pub String);

/// A file of the Swagger page. `ingest/swagger-ui/README.md` says where it comes from.
struct File {
    name: &'static str,
    content_type: &'static str,
    is_gzip: bool,
    content: &'static [u8],
}

const FILES: [File; 5] = [
    File {
        name: "index.html",
        content_type: "text/html; charset=utf-8",
        is_gzip: false,
        content: include_bytes!("../swagger-ui/index.html"),
    },
    File {
        name: "swagger-initializer.js",
        content_type: "text/javascript; charset=utf-8",
        is_gzip: false,
        content: include_bytes!("../swagger-ui/swagger-initializer.js"),
    },
    File {
        name: "swagger-ui-bundle.js",
        content_type: "text/javascript; charset=utf-8",
        is_gzip: true,
        content: include_bytes!("../swagger-ui/swagger-ui-bundle.js.gz"),
    },
    File {
        name: "swagger-ui.css",
        content_type: "text/css; charset=utf-8",
        is_gzip: true,
        content: include_bytes!("../swagger-ui/swagger-ui.css.gz"),
    },
    File {
        name: "favicon-32x32.png",
        content_type: "image/png",
        is_gzip: false,
        content: include_bytes!("../swagger-ui/favicon-32x32.png"),
    },
];

/// This API as an OpenAPI 3.1 document.
#[utoipa::path(get, path = "/openapi.json", tag = "specifications", security(()), responses(
    (status = 200, description = "The document", body = serde_json::Value)))]
pub async fn openapi(document: Data<Document>) -> HttpResponse {
    HttpResponse::Ok().content_type("application/json").body(document.0.clone())
}

/// The AMQP side as an AsyncAPI 3.0 document.
#[utoipa::path(get, path = "/asyncapi.yaml", tag = "specifications", security(()), responses(
    (status = 200, description = "The document", body = serde_json::Value, content_type = "application/yaml")))]
pub async fn asyncapi() -> HttpResponse {
    HttpResponse::Ok().content_type("application/yaml").body(ASYNCAPI)
}

/// Every problem that this API answers, for people.
#[utoipa::path(get, path = "/docs/problems", tag = "specifications", security(()), responses(
    (status = 200, description = "The page", body = String, content_type = "text/html")))]
pub async fn problems() -> HttpResponse {
    let row = |code: &Code| {
        let (word, status, title) = (code.as_str(), code.status(), code.title());
        format!("<tr id=\"{word}\"><td><code>{word}</code></td><td>{status}</td><td>{title}.</td></tr>")
    };
    let rows: String = Code::ALL.iter().map(row).collect();
    let page = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Problems · Posthaste</title>\
         <style>body{{font:1rem/1.5 system-ui;max-width:50rem;margin:2rem auto}}td{{padding:.2rem .8rem}}tr:target{{background:#ffd}}</style>\
         <h1>Problems</h1><p>Errors are RFC 9457 problem details. The <code>code</code> is one of these; <code>detail</code> says what to do.</p>\
         <table>{rows}</table></html>"
    );
    HttpResponse::Ok()
        .insert_header(POLICY)
        .insert_header(NO_FRAMES)
        .content_type("text/html; charset=utf-8")
        .body(page)
}

/// Redirects `/docs`, because the page's links are relative to `/docs/`.
pub async fn ui_root() -> HttpResponse {
    HttpResponse::PermanentRedirect().insert_header((LOCATION, "/docs/")).finish()
}

/// The files of the Swagger page.
pub async fn ui(request: HttpRequest) -> Result<HttpResponse, Problem> {
    let name = request.match_info().get("file").unwrap_or_default();
    let name = if name.is_empty() { "index.html" } else { name };
    let file = FILES.iter().find(|file| file.name == name);
    let file = file.ok_or_else(|| Problem::new(Code::NotFound, "Start at /docs/."))?;
    let mut answer = HttpResponse::Ok();
    answer.insert_header(POLICY).insert_header(NO_FRAMES).content_type(file.content_type);
    if file.is_gzip {
        // Every browser reads gzip. The files are not kept in a second form for clients that do not.
        answer.insert_header((CONTENT_ENCODING, "gzip"));
    }
    Ok(answer.body(file.content))
}

#[cfg(test)]
mod tests {
    use domain::contract::submission::Submission;

    use super::*;

    #[test]
    fn the_asyncapi_document_describes_fields_that_are_accepted() {
        let body = ASYNCAPI.split("\n    Submission:\n").nth(1).unwrap().split("\n    Reply:\n").next().unwrap();
        let is_field = |line: &&str| line.starts_with("        ") && !line.starts_with("         ");
        let fields: Vec<&str> = body
            .lines()
            .filter(is_field)
            .filter_map(|line| line.trim().split_once(':'))
            .map(|(name, _)| name)
            .collect();
        let fields: Vec<&str> = fields.into_iter().filter(|name| !name.contains(' ')).collect();
        assert!(fields.len() > 10, "{fields:?}");
        for field in fields {
            let refused = Submission::parse(format!("{{\"{field}\":null}}").as_bytes()).err();
            assert!(!refused.is_some_and(|error| error.message.contains("unknown field")), "{field}");
        }
    }
}
