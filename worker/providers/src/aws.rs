//! Calls to Amazon Web Services: Signature Version 4, and the outcomes of the common error codes.

use std::sync::Arc;

use aws_lc_rs::{
    digest::{SHA256, digest},
    hmac,
};
use chrono::{DateTime, Utc};
use domain::{Channel, Fault, Outcome, ProviderName, clock, contract::Order};
use reqwest::{
    Client, Method, RequestBuilder, Url,
    header::{CONTENT_TYPE, HeaderName},
};
use runtime::config::Config;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

use super::vendor::{self, SetupError, VendorResponse};

/// The header in which Amazon's SDKs send an id that stays the same on each attempt.
const INVOCATION: HeaderName = HeaderName::from_static("amz-sdk-invocation-id");
/// The longest error code that is stored.
const CODE_BYTES_MAX: usize = 64;

/// One service of Amazon.
pub struct Aws {
    client: Client,
    signer: Signer,
    base: Url,
    /// The key of the service's breaker.
    pub breaker: Arc<str>,
}

impl Aws {
    /// The service called `host` in host names and `service` in signatures.
    pub fn new(
        config: &Config,
        (provider, channel): (ProviderName, Channel),
        (host, service): (&str, &'static str),
    ) -> Result<Self, SetupError> {
        let aws = &config.aws;
        let region = aws.region.clone().ok_or(SetupError::Incomplete("AWS_REGION"))?;
        let key_id = aws.access_key_id.clone().ok_or(SetupError::Incomplete("AWS_ACCESS_KEY_ID"))?;
        let secret = aws.secret_access_key.clone().ok_or(SetupError::Incomplete("AWS_SECRET_ACCESS_KEY"))?;
        let own = || {
            let china = if region.starts_with("cn-") { ".cn" } else { "" };
            Url::parse(&format!("https://{host}.{region}.amazonaws.com{china}/"))
        };
        let base = aws.endpoint_url.clone().map_or_else(own, Ok).map_err(|_| SetupError::Unusable("AWS_REGION"))?;
        let credential = format!("{region}:{key_id}:{}", secret.expose_secret());
        let breaker = vendor::breaker_key(provider, &credential);
        let client = vendor::client(config.call_timeout(channel)).build().map_err(SetupError::Client)?;
        let signer = Signer { key_id, secret, token: aws.session_token.clone(), region, service };
        Ok(Self { client, signer, base, breaker })
    }

    /// A signed request; `path` is below the service's address.
    pub fn request(&self, method: Method, path: &str, kind: &str, body: Vec<u8>) -> Result<RequestBuilder, Outcome> {
        let unusable = |_| {
            let fault = Fault::new("endpoint", "AWS_ENDPOINT_URL has no form that can be called");
            Outcome::Misconfigured(fault)
        };
        let url = self.base.join(path).map_err(unusable)?;
        let signed = self.signer.sign(&method, &url, &[("content-type", kind)], &body, clock::now());
        let request = self.client.request(method, url).header(CONTENT_TYPE, kind).body(body);
        Ok(signed.into_iter().fold(request, |request, (name, value)| request.header(name, value)))
    }

    /// Makes the one call of an attempt.
    pub async fn send(
        &self,
        name: &str,
        order: &Order,
        path: &str,
        kind: &str,
        body: Vec<u8>,
    ) -> Result<VendorResponse, Outcome> {
        let request = self.request(Method::POST, path, kind, body)?;
        vendor::call(name, request.header(INVOCATION, order.delivery.to_string()).timeout(order.timeout)).await
    }

    /// Makes a call that sends nothing.
    pub async fn check(
        &self,
        name: &str,
        method: Method,
        path: &str,
        kind: &str,
        body: Vec<u8>,
    ) -> Result<String, Fault> {
        let request = self.request(method, path, kind, body);
        let request = request.map_err(|outcome| outcome.fault().cloned().unwrap_or_default())?;
        vendor::check(name, request).await
    }
}

/// Signs requests by Signature Version 4. The signing key is derived from the day, the region and the service.
struct Signer {
    key_id: String,
    secret: SecretString,
    token: Option<SecretString>,
    region: String,
    service: &'static str,
}

impl Signer {
    /// The headers to add to a request that has `headers` (in lower case).
    fn sign(
        &self,
        method: &Method,
        url: &Url,
        headers: &[(&str, &str)],
        body: &[u8],
        at: DateTime<Utc>,
    ) -> Vec<(&'static str, String)> {
        let (day, moment) = (at.format("%Y%m%d").to_string(), at.format("%Y%m%dT%H%M%SZ").to_string());
        let scope = format!("{day}/{}/{}/aws4_request", self.region, self.service);
        let mut added = vec![("x-amz-date", moment.clone())];
        added.extend(self.token.as_ref().map(|token| ("x-amz-security-token", token.expose_secret().to_owned())));

        let host = host(url);
        let mut signed: Vec<(&str, &str)> = headers.to_vec();
        signed.push(("host", &host));
        signed.extend(added.iter().map(|(name, value)| (*name, value.as_str())));
        signed.sort_unstable();
        let names = signed.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(";");
        let lines: String = signed.iter().map(|(name, value)| format!("{name}:{}\n", value.trim())).collect();
        let canonical = format!(
            "{method}\n{}\n{}\n{lines}\n{names}\n{}",
            path(url),
            query(url),
            hex(digest(&SHA256, body).as_ref())
        );

        let text =
            format!("AWS4-HMAC-SHA256\n{moment}\n{scope}\n{}", hex(digest(&SHA256, canonical.as_bytes()).as_ref()));
        let first = format!("AWS4{}", self.secret.expose_secret()).into_bytes();
        let key = [day.as_str(), &self.region, self.service, "aws4_request"]
            .iter()
            .fold(first, |key, part| mac(&key, part.as_bytes()));
        let signature = hex(&mac(&key, text.as_bytes()));
        let credential = format!("{}/{scope}", self.key_id);
        let authorization =
            format!("AWS4-HMAC-SHA256 Credential={credential}, SignedHeaders={names}, Signature={signature}");
        added.push(("authorization", authorization));
        added
    }
}

fn mac(key: &[u8], text: &[u8]) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text).as_ref().to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The `Host` header as the HTTP client writes it: without a default port.
fn host(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// The canonical path. Each segment is encoded a second time, as the signature requires.
fn path(url: &Url) -> String {
    url.path().split('/').map(encode).collect::<Vec<_>>().join("/")
}

fn query(url: &Url) -> String {
    let mut pairs: Vec<_> = url.query_pairs().map(|(name, value)| (encode(&name), encode(&value))).collect();
    pairs.sort_unstable();
    pairs.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("&")
}

fn encode(text: &str) -> String {
    let keep = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~');
    text.bytes().map(|byte| if keep(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

/// The error code, from a header, JSON or XML.
pub fn error_code(response: &VendorResponse) -> Option<String> {
    #[derive(Deserialize)]
    struct ErrorBody {
        #[serde(rename = "__type", alias = "code", alias = "Code")]
        kind: String,
    }
    let in_header = response.header("x-amzn-errortype").map(str::to_owned);
    let in_json = || response.json::<ErrorBody>().map(|error| error.kind);
    let found = in_header.or_else(in_json).or_else(|| element(response, "Code"))?;
    // `MessageRejected:http://…` and `com.amazonaws.sesv2#MessageRejected` are both in use.
    let code = found.split(':').next()?.rsplit('#').next()?;
    let good =
        !code.is_empty() && code.len() <= CODE_BYTES_MAX && code.bytes().all(|b| b.is_ascii_alphabetic() || b == b'.');
    good.then(|| code.to_owned())
}

/// The text of the first XML element of that name.
pub fn element(response: &VendorResponse, name: &str) -> Option<String> {
    let text = std::str::from_utf8(response.body.as_deref()?).ok()?;
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    rest.split_once(&format!("</{name}>")).map(|(value, _)| value.trim().to_owned())
}

/// The outcome of an error response, the same for all services.
pub fn classify(name: &str, response: &VendorResponse) -> Outcome {
    let Some(code) = error_code(response).filter(|_| !response.status.is_success()) else {
        return response.classify(name, None);
    };
    let fault = |why: &str| Fault::new(code.as_str(), format!("{name} answered {code}{why}"));
    let plain = code.strip_suffix("Exception").unwrap_or(&code);
    match plain {
        "Throttling" | "Throttled" | "TooManyRequests" | "LimitExceeded" | "RequestLimitExceeded" => {
            Outcome::Throttled(fault(": too much at once"), response.retry_after())
        }
        "UnrecognizedClient"
        | "InvalidClientTokenId"
        | "SignatureDoesNotMatch"
        | "InvalidSignature"
        | "IncompleteSignature"
        | "MissingAuthenticationToken"
        | "ExpiredToken"
        | "RequestExpired"
        | "AccessDenied"
        | "AuthorizationError"
        | "NotAuthorized"
        | "OptInRequired"
        | "InvalidSecurity" => Outcome::Misconfigured(fault(": the credentials are refused")),
        _ => response.classify(name, Some(&code)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";

    fn signature(service: &'static str, method: Method, url: &str, headers: &[(&str, &str)], body: &str) -> String {
        signature_with(KEY, None, service, method, url, headers, body)
    }

    fn signature_with(
        key: &str,
        token: Option<&str>,
        service: &'static str,
        method: Method,
        url: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> String {
        let signer = Signer {
            key_id: "AKIDEXAMPLE".to_owned(),
            secret: key.into(),
            token: token.map(Into::into),
            region: "us-east-1".to_owned(),
            service,
        };
        let at = "2015-08-30T12:36:00Z".parse().unwrap();
        let added = signer.sign(&method, &url.parse().unwrap(), headers, body.as_bytes(), at);
        assert_eq!(added[0], ("x-amz-date", "20150830T123600Z".to_owned()));
        let (name, value) = added.last().unwrap();
        assert_eq!(*name, "authorization");
        assert!(value.starts_with("AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/"), "{value}");
        value.rsplit_once("Signature=").unwrap().1.to_owned()
    }

    /// Of Amazon's published test suite, and the worked example of its documentation.
    #[test]
    fn the_published_examples_have_these_signatures() {
        let form = [("content-type", "application/x-www-form-urlencoded")];
        let utf8 = [("content-type", "application/x-www-form-urlencoded; charset=utf-8")];
        let list = "https://iam.amazonaws.com/?Action=ListUsers&Version=2010-05-08";
        let root = "https://example.amazonaws.com/";
        let unordered = "https://example.amazonaws.com/?Param2=value2&Param1=value1";
        for (service, method, url, headers, body, expected) in [
            (
                "service",
                Method::GET,
                root,
                &[][..],
                "",
                "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31",
            ),
            (
                "service",
                Method::POST,
                root,
                &[],
                "",
                "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b",
            ),
            (
                "service",
                Method::POST,
                root,
                &form,
                "Param1=value1",
                "ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a",
            ),
            (
                "service",
                Method::GET,
                unordered,
                &[],
                "",
                "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500",
            ),
            ("iam", Method::GET, list, &utf8, "", "5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7"),
        ] {
            assert_eq!(signature(service, method.clone(), url, headers, body), expected, "{method} {url}");
        }
    }

    #[test]
    fn everything_about_a_request_is_under_the_signature() {
        let plain = signature("ses", Method::POST, "https://a.example/x", &[("content-type", "a/b")], "body");
        for other in [
            signature("sns", Method::POST, "https://a.example/x", &[("content-type", "a/b")], "body"),
            signature("ses", Method::PUT, "https://a.example/x", &[("content-type", "a/b")], "body"),
            signature("ses", Method::POST, "https://b.example/x", &[("content-type", "a/b")], "body"),
            signature("ses", Method::POST, "https://a.example:8443/x", &[("content-type", "a/b")], "body"),
            signature("ses", Method::POST, "https://a.example/y", &[("content-type", "a/b")], "body"),
            signature("ses", Method::POST, "https://a.example/x?q=1", &[("content-type", "a/b")], "body"),
            signature("ses", Method::POST, "https://a.example/x", &[("content-type", "a/c")], "body"),
            signature("ses", Method::POST, "https://a.example/x", &[("content-type", "a/b")], "other"),
            signature_with("k", None, "ses", Method::POST, "https://a.example/x", &[("content-type", "a/b")], "body"),
            signature_with(
                KEY,
                Some("t"),
                "ses",
                Method::POST,
                "https://a.example/x",
                &[("content-type", "a/b")],
                "body",
            ),
        ] {
            assert_ne!(plain, other);
        }
    }
}
