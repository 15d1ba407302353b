//! Bytes that nobody means well with, at what this crate reads of requests: tokens, key sets, cookies, forwarding and tracing
//! fields, probes, request logs; and requests made of them through the whole handler.
//!
//! Short in the tests, with a fixed seed; `HOSTILE_SECONDS=600` makes a long run, whose seed is printed, and `HOSTILE_SEED`
//! repeats one. What a long run found is kept at the end of `corpus.txt`.

#![expect(clippy::disallowed_methods, reason = "how long to go on is no matter of the code under test")]

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use fastrand::Rng;
use http::{HeaderMap, HeaderName, Uri};
use neap_api::keys::neap;
use neap_logic::routing::extras::{AuthRule, extras};
use serde_json::json;

use super::world::*;
use super::*;
use crate::extras::affinity::Seal;
use crate::extras::auth::jwks::Keys;
use crate::extras::auth::jwt::Token;
use crate::extras::auth::testing::Signer;
use crate::queue::log::{Entry, Logger};

const SHORT: usize = 300;
const SEED: u64 = 9;
const WORDS: &[&str] = &[
    "",
    " ",
    ",",
    ";",
    "=",
    ".",
    "..",
    "/",
    "//",
    "%",
    "%00",
    "\"",
    ":",
    "[",
    "]",
    "::1",
    "1.2.3.4",
    "unknown",
    "for=",
    "Bearer ",
    "é",
    "null",
    "{}",
    "[]",
    "e30",
    "eyJhbGciOiJub25lIn0",
    "-1",
    "1e999",
    "18446744073709551616",
    "RS256",
    "none",
    "override",
    "probe",
    "activator",
    "00-",
    "{{",
    "\\u0000",
];

fn bent(random: &mut Rng, seeds: &[String]) -> String {
    let mut chars: Vec<char> = random.choice(seeds).expect("a seed").chars().collect();
    for _ in 0..random.usize(0..4) {
        let at = random.usize(..=chars.len());
        let to = random.usize(at..=chars.len().min(at + 8));
        let piece: Vec<char> = match random.u8(0..5) {
            0 => Vec::new(),
            1 => random.choice(WORDS).expect("a word").chars().collect(),
            2 => random
                .choice(seeds)
                .expect("a seed")
                .chars()
                .skip(random.usize(..30))
                .take(random.usize(..60))
                .collect(),
            3 => chars[at..to].repeat(random.usize(..10)),
            _ => vec![random.char('\0'..='ÿ')],
        };
        chars.splice(at..to, piece);
    }
    chars.into_iter().collect()
}

/// Names that mean something here, and one that does not.
const NAMES: &[&str] = &[
    "authorization",
    "x-api-key",
    "cookie",
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-forwarded-host",
    "forwarded",
    "traceparent",
    "x-b3-traceid",
    "k-network-probe",
    "k-network-hash",
    "k-original-host",
    "k-proxy-request",
    "knative-serving-tag",
    "knative-serving-revision",
    "x-sub",
    "x-neap-timing",
    "user-agent",
    "referer",
    "content-type",
    "x-other",
    "upgrade",
    "connection",
    "host",
    "te",
];

fn request(random: &mut Rng, seeds: &[String]) -> Option<Request> {
    let target = format!("/{}", bent(random, seeds));
    let mut request = http::Request::new(Body::empty());
    *request.uri_mut() =
        if random.u8(0..4) == 0 { Uri::from_static("/api/x?y") } else { Uri::try_from(target).ok()? };
    *request.method_mut() = random.choice(&[http::Method::GET, http::Method::POST, http::Method::HEAD])?.clone();
    let host = *random.choice(&["app.example", "key.example", "shop.example", "x.shop.example", "r.ns", "app.ns"])?;
    request.headers_mut().insert("host", HeaderValue::from_static(host));
    for _ in 0..random.usize(..6) {
        if let Ok(value) = HeaderValue::from_bytes(bent(random, seeds).as_bytes()) {
            request.headers_mut().append(HeaderName::from_static(random.choice(NAMES)?), value);
        }
    }
    Some(request)
}

/// Everything that reads text by itself.
fn readers(random: &mut Rng, text: &str, rule: &AuthRule, seal: &Seal, keys: &Keys) {
    if let Ok(token) = Token::read(text.as_bytes()) {
        assert!(keys.verify(&token).is_err(), "nobody has signed {text}");
        if let AuthRule::Jwt(rule) = rule {
            let _ = token.claims(rule, random.u64(..));
        }
    }
    // A header and claims of any kind, in the form of a token.
    let (head, claims) = text.split_at(text.char_indices().nth(text.chars().count() / 2).map_or(0, |(at, _)| at));
    let token = format!("{}.{}.AAAA", URL_SAFE_NO_PAD.encode(head), URL_SAFE_NO_PAD.encode(claims));
    if let (Ok(token), AuthRule::Jwt(rule)) = (Token::read(token.as_bytes()), rule) {
        assert!(keys.verify(&token).is_err());
        let _ = token.claims(rule, random.u64(..));
    }
    if let Ok(keys) = Keys::read(text.as_bytes()) {
        let _ = keys.has(text);
    }
    let mut headers = HeaderMap::new();
    for name in ["cookie", "x-forwarded-for"] {
        if let Ok(value) = HeaderValue::from_bytes(format!("neap-1={text}").as_bytes()) {
            headers.append(HeaderName::from_static(name), value);
        }
    }
    let affinity = neap_logic::routing::extras::Affinity::Cookie { name: "neap-1".into() };
    let sticky = Sticky::of(&affinity, seal, &headers, [192, 0, 2, 7].into());
    assert!(sticky.prefer(None).is_none(), "nobody has sealed {text}");
    let _ = request::client(&headers, &connection(EXTERNAL), true);
    let _ = request::first_client(&headers, &connection(EXTERNAL), true);
    let mut rewritten = get("app.example", "/");
    if request::rewrite_path(&mut rewritten, "/p", &format!("/{text}")).is_ok() {
        assert!(rewritten.uri().authority().is_none() && rewritten.uri().path().starts_with('/'));
    }
}

#[derive(Default)]
struct Lines(std::sync::Mutex<usize>);

impl crate::queue::RequestLog for Lines {
    fn line(&self, line: String) {
        assert!(line.ends_with('\n'));
        *self.0.lock().expect("is whole") += 1;
    }
}

/// Services of all kinds, before one instance.
async fn world() -> World {
    let world = World::with_app(json!({}));
    world.instances("r-private", "http", &[instance(|_| async { "ok".to_owned() }).await]);
    let set = json!({ "keys": [Signer::ed25519("1").public()] }).to_string();
    world.secret(
        "keys",
        neap::AUTH_KEYS_TYPE,
        json!({ "jwks.json": STANDARD.encode(set), "a": "c2VjcmV0LXNlY3JldA==" }),
    );
    let spec = |host: &str| json!({ "rules": [{ "hosts": [host], "http": { "paths": [path_to_revision("r")] } }] });
    let token = json!({ neap::AUTH: "jwt", neap::AUTH_ISSUER: "https://id", neap::AUTH_AUDIENCE: "app",
        neap::AUTH_SECRET: "keys", neap::AUTH_CLAIMS: "sub=x-sub" });
    world.annotated_ingress("token", token, spec("token.example"));
    world.annotated_ingress("key", json!({ neap::AUTH: "key", neap::AUTH_SECRET: "keys" }), spec("key.example"));
    world.annotated_ingress(
        "sticky",
        json!({ neap::SESSION_AFFINITY: "cookie", neap::HEDGE_AFTER: "p95" }),
        spec("r.example"),
    );
    let mut paths = spec("shop.example");
    paths["rules"][0]["hosts"] = json!(["shop.example", "*.shop.example"]);
    let mut api = path_to_revision("r");
    api["path"] = "/api".into();
    paths["rules"][0]["http"]["paths"].as_array_mut().expect("a list").insert(0, api);
    world.annotated_ingress(
        "shop",
        json!({ neap::PATHS: r#"[{"rule":0,"path":0,"rewrite":"/"}]"#, neap::WILDCARD: "true" }),
        paths,
    );
    world
}

#[tokio::test]
async fn whatever_comes_nothing_panics_and_nobody_is_let_in_by_chance() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seconds = number("HOSTILE_SECONDS");
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    let seed = number("HOSTILE_SEED").unwrap_or_else(|| if seconds.is_some() { now() } else { SEED });
    let until = seconds.map(|seconds| std::time::Instant::now() + Duration::from_secs(seconds));
    println!("seed {seed}");
    let seeds: Vec<String> = include_str!("corpus.txt").lines().map(str::to_owned).collect();
    let mut random = Rng::with_seed(seed);
    let of = IngressKey::new("ns", "i");
    let (rules, _) = extras(&of, |key| match key {
        neap::AUTH => Some("jwt"),
        neap::AUTH_ISSUER => Some("https://id"),
        neap::AUTH_AUDIENCE => Some("app"),
        _ => None,
    });
    let rule = rules.auth.expect("a rule");
    let seal = Seal::new("the one");
    let keys =
        Keys::read(json!({ "keys": [Signer::p256("1").public(), Signer::rsa("2").public()] }).to_string().as_bytes());
    let keys = keys.expect("a set");
    let lines = Arc::new(Lines::default());
    let template = neap_logic::config::observability::REQUEST_LOG_TEMPLATE.parse().expect("a template");
    let logger = Arc::new(Logger { template, owner: Arc::default(), sink: lines.clone() });
    let (mut tried, mut served, mut refused) = (0, 0, 0);
    while until.map_or(tried < SHORT, |until| std::time::Instant::now() < until) {
        // A world of its own now and then, for its tasks end with it.
        let stock: Vec<Request> = (0..100).filter_map(|_| request(&mut random, &seeds)).collect();
        for _ in 0..500 {
            let text = bent(&mut random, &seeds);
            readers(&mut random, &text, &rule, &seal, &keys);
        }
        tried += stock.len();
        let (ok, not) = local(async {
            let world = world().await;
            let (mut ok, mut not) = (0, 0);
            for request in stock {
                let host = request.headers()["host"].clone();
                let entry = Entry::begin(&logger, &request, &connection(EXTERNAL), Instant::now());
                drop(entry.watch(http::Response::new(Body::empty())));
                let door = if random.bool() { EXTERNAL } else { LOCAL };
                let key = request.headers().get("x-api-key").cloned();
                let probe = request.headers().contains_key("k-network-probe");
                let (head, body) = world.send(door, request).await;
                let status = head.status().as_u16();
                if status == 200 {
                    ok += 1;
                } else {
                    not += 1;
                }
                // The gateway itself answers networking probes, to anybody; and a gRPC caller is refused with 200.
                let ours = head.headers().contains_key("x-neap-error") || (probe && body != "ok");
                let open = ours || key.is_some_and(|key| key == "secret-secret");
                assert!(host != "key.example" || status != 200 || open, "{body}");
                assert!(status != 500 && status != 502, "{status} {body}");
            }
            (ok, not)
        })
        .await;
        served += ok;
        refused += not;
    }
    println!("{tried} requests, {served} served, {refused} refused; {} lines", lines.0.lock().expect("is whole"));
    assert!(served * 4 > tried && refused * 20 > tried, "{served} served and {refused} refused of {tried}");
}
