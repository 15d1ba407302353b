//! What goes beyond Knative, through the gateway's handler.

use super::world::*;
use super::*;

use std::cell::{Cell, RefCell};

use http_body_util::BodyExt;
use neap_api::keys::neap;
use serde_json::{Value, json};
use tokio::time::{advance, sleep};

use crate::extras::auth::testing::Signer;

/// Asks for these annotations on the Ingress `name` of host `host`, which leads to a Revision.
fn route(world: &World, name: &str, host: &str, revision: &str, annotations: Value) {
    let spec = json!({ "rules": [{ "hosts": [host], "http": { "paths": [path_to_revision(revision)] } }] });
    world.annotated_ingress(name, annotations, spec);
}

fn with(host: &str, fields: &[(&'static str, &str)]) -> Request {
    let mut request = get(host, "/");
    for (name, value) in fields {
        request.headers_mut().append(*name, value.parse().expect("a value"));
    }
    request
}

/// An instance that says its name.
async fn named(name: &'static str) -> std::net::SocketAddr {
    instance(move |_| async move { name.to_owned() }).await
}

fn cookie_of(head: &http::Response<()>) -> Option<String> {
    let cookie = head.headers().get("set-cookie")?.to_str().expect("text");
    Some(cookie.split(';').next().expect("a pair").to_owned())
}

#[tokio::test]
async fn a_cookie_keeps_a_client_where_it_was() {
    local(async {
        let world = World::with_app(json!({ "containerConcurrency": 5 }));
        route(&world, "app", "app.example", "r", json!({ neap::SESSION_AFFINITY: "cookie" }));
        let (a, b, c) = (named("a").await, named("b").await, named("c").await);
        world.instances("r-private", "http", &[a, b]);
        let (head, first) = world.send(EXTERNAL, get("app.example", "/")).await;
        let cookie = cookie_of(&head).expect("is given one");
        let full = head.headers()["set-cookie"].to_str().expect("text");
        assert!(full.ends_with("; Path=/; HttpOnly; SameSite=Lax"), "{full}");
        // Round robin would go on to the other.
        for _ in 0..6 {
            let (head, body) =
                world.send(EXTERNAL, with("app.example", &[("cookie", &format!("x=y; {cookie}"))])).await;
            assert_eq!((body.as_str(), cookie_of(&head)), (first.as_str(), None));
        }
        // More instances change nothing for those who have one.
        world.instances("r-private", "http", &[a, b, c]);
        assert_eq!(world.send(EXTERNAL, with("app.example", &[("cookie", &cookie)])).await.1, first);
        // Its own is gone: another one, and another cookie.
        let left: Vec<_> = [a, b, c].into_iter().zip(["a", "b", "c"]).filter(|(_, name)| *name != first).collect();
        world.instances("r-private", "http", &[left[0].0]);
        let (head, body) = world.send(EXTERNAL, with("app.example", &[("cookie", &cookie)])).await;
        assert_eq!(body, left[0].1);
        let next = cookie_of(&head).expect("is given another");
        assert_ne!(next, cookie);
        // A forged one is none.
        let forged = format!("{}=AAAA", cookie.split('=').next().expect("a name"));
        assert!(cookie_of(&world.send(EXTERNAL, with("app.example", &[("cookie", &forged)])).await.0).is_some());
    })
    .await;
}

#[tokio::test]
async fn a_full_instance_is_passed_over_and_stays_the_clients_own() {
    local(async {
        let world = World::with_app(json!({ "containerConcurrency": 1 }));
        route(&world, "app", "app.example", "r", json!({ neap::SESSION_AFFINITY: "cookie" }));
        let (a, b) = (named("a").await, named("b").await);
        world.instances("r-private", "http", &[a, b]);
        let (head, first) = world.send(EXTERNAL, get("app.example", "/")).await;
        let cookie = cookie_of(&head).expect("is given one");
        let own = if first == "a" { a } else { b };
        let gate = world.plane.gates().remove(0);
        let wish = affinity::Prefer::Instance(own);
        let crate::gate::Entry::Enter(held) = gate.enter(Instant::now(), crate::gate::Comes::First, Some(&wish)) else {
            panic!("has room")
        };
        assert_eq!(held.instance, own);
        let (head, body) = world.send(EXTERNAL, with("app.example", &[("cookie", &cookie)])).await;
        assert!(body != first && cookie_of(&head).is_none(), "another one for now: {body}");
        gate.end(Some(held), Instant::now(), Instant::now(), None);
        assert_eq!(world.send(EXTERNAL, with("app.example", &[("cookie", &cookie)])).await.1, first);
    })
    .await;
}

#[tokio::test]
async fn a_client_stays_with_its_revision_while_that_gets_requests() {
    local(async {
        let world = World::new();
        let split = |one: u8| {
            let mut path = path_to_revision("one");
            let mut other = path_to_revision("two")["splits"][0].clone();
            path["splits"][0]["percent"] = one.into();
            other["percent"] = (100 - one).into();
            path["splits"].as_array_mut().expect("a list").push(other);
            json!({ "rules": [{ "hosts": ["app.example"], "http": { "paths": [path] } }] })
        };
        for name in ["one", "two"] {
            world.revision(name, json!({}));
        }
        let slices = [("one-private", named("one").await), ("two-private", named("two").await)];
        world.all_instances("http", &slices);
        world.annotated_ingress("app", json!({ neap::SESSION_AFFINITY: "cookie" }), split(50));
        let (head, first) = world.send(EXTERNAL, get("app.example", "/")).await;
        let cookie = cookie_of(&head).expect("is given one");
        for _ in 0..8 {
            assert_eq!(world.send(EXTERNAL, with("app.example", &[("cookie", &cookie)])).await.1, first);
        }
        let all_to_other = if first == "one" { 0 } else { 100 };
        world.annotated_ingress("app", json!({ neap::SESSION_AFFINITY: "cookie" }), split(all_to_other));
        let (head, body) = world.send(EXTERNAL, with("app.example", &[("cookie", &cookie)])).await;
        assert!(body != first && cookie_of(&head).is_some());

        world.annotated_ingress("app", json!({ neap::SESSION_AFFINITY: "header:x-user" }), split(50));
        let mut seen = std::collections::BTreeSet::new();
        for user in 0..20 {
            let user = format!("user {user}");
            let (head, body) = world.send(EXTERNAL, with("app.example", &[("x-user", &user)])).await;
            assert_eq!(world.send(EXTERNAL, with("app.example", &[("x-user", &user)])).await.1, body);
            assert!(cookie_of(&head).is_none());
            seen.insert(body);
        }
        assert_eq!(seen.len(), 2, "both get their share");
    })
    .await;
}

#[tokio::test]
async fn paths_of_one_domain_lead_to_several_services() {
    local(async {
        let world = World::new();
        for name in ["front", "api"] {
            world.revision(name, json!({}));
            let paths = json!({ "paths": [path_to_revision(name)] });
            let host = format!("{name}.ns.svc.cluster.local");
            world.ingress(name, json!({ "rules": [{ "hosts": [host], "visibility": "ClusterLocal", "http": paths }] }));
        }
        world.all_instances("http", &[("front-private", mirror().await), ("api-private", echo_target().await)]);
        let path = |prefix: &str, service: &str, original: Option<&str>| {
            let mut path = path_to_service(service, json!({ "rewriteHost": format!("{service}.ns.svc.cluster.local") }));
            path["path"] = prefix.into();
            if let Some(host) = original {
                path["appendHeaders"] = json!({ "K-Original-Host": host });
            }
            path
        };
        let side = |host: &str, original| {
            json!({ "hosts": [host], "http": { "paths": [path("/api", "api", original), path("", "front", original)] } })
        };
        let more = json!([{ "rule": 0, "path": 0, "rewrite": "/" }, { "rule": 1, "path": 0, "rewrite": "/" }]);
        world.annotated_ingress(
            "shop.example",
            json!({ neap::PATHS: more.to_string(), neap::WILDCARD: "true" }),
            json!({ "rules": [side("shop.example", Some("shop.example")), side("*.shop.example", None)] }),
        );
        let (status, body) = world.get(EXTERNAL, "shop.example", "/api/v1?x=1").await;
        assert_eq!((status, body.as_str()), (200, "/v1?x=1 shop.example /api"));
        assert_eq!(world.get(EXTERNAL, "shop.example", "/api").await.1, "/ shop.example /api");
        assert_eq!(world.get(EXTERNAL, "shop.example", "/api//evil.example").await.1, "//evil.example shop.example /api");
        assert!(world.get(EXTERNAL, "shop.example", "/apiary").await.1.contains("host: shop.example\n"));
        // Below the wildcard the application hears the name it was called by, and no other.
        assert!(world.get(EXTERNAL, "tenant.shop.example:8080", "/").await.1.contains("host: tenant.shop.example:8080\n"));
        let lie = with("tenant.shop.example", &[("k-original-host", "other.example")]);
        assert!(world.send(EXTERNAL, lie).await.1.contains("host: tenant.shop.example\n"));
        assert_eq!(world.get(EXTERNAL, "tenant.shop.example", "/api/x").await.1, "/x tenant.shop.example /api");
    })
    .await;
}

/// One that answers with target, host and prefix.
async fn echo_target() -> std::net::SocketAddr {
    instance(|request| async move {
        let text =
            |name: &str| request.headers().get(name).map_or("-", |value| value.to_str().expect("text")).to_owned();
        format!("{} {} {}", request.uri(), text("host"), text("x-forwarded-prefix"))
    })
    .await
}

#[tokio::test]
async fn more_than_the_limit_is_told_when_to_come_again() {
    local(async {
        let world = World::with_app(json!({}));
        world.instances("r-private", "http", &[named("a").await]);
        let limit = |text: &str, by: &str| {
            route(&world, "app", "app.example", "r", json!({ neap::RATE_LIMIT: text, neap::RATE_LIMIT_BY: by }));
        };
        limit("2/m burst 2", "client");
        let status = async |request| {
            let (head, _) = world.send(EXTERNAL, request).await;
            let text = |name: &str| head.headers().get(name).map(|value| value.to_str().expect("text").to_owned());
            (head.status().as_u16(), text("x-neap-error"), text("retry-after"))
        };
        let plain = || get("app.example", "/");
        assert_eq!((status(plain()).await.0, status(plain()).await.0), (200, 200));
        let (code, why, after) = status(plain()).await;
        assert_eq!((code, why.as_deref()), (429, Some("client/rate-limit")));
        assert!((29..=30).contains(&after.expect("says when").parse::<u32>().expect("seconds")));
        // A change of something else keeps the count; a change of the limit begins anew.
        route(
            &world,
            "app",
            "app.example",
            "r",
            json!({ neap::RATE_LIMIT: "2/m burst 2", neap::SESSION_AFFINITY: "client-ip" }),
        );
        assert_eq!(status(plain()).await.0, 429);
        limit("1/m", "header:x-key");
        let by = |key: &str| with("app.example", &[("x-key", key)]);
        assert_eq!((status(by("a")).await.0, status(by("b")).await.0, status(by("a")).await.0), (200, 200, 429));
        assert_eq!((status(plain()).await.0, status(plain()).await.0), (200, 429), "those without it count together");
        limit("1/m", "all");
        assert_eq!((status(by("a")).await.0, status(by("b")).await.0), (200, 429));
        assert_eq!(world.was_woken(), None);
    })
    .await;
}

#[tokio::test]
async fn a_shared_key_opens_and_is_not_passed_on() {
    local(async {
        let world = World::with_app(json!({}));
        world.instances("r-private", "http", &[mirror().await]);
        route(&world, "app", "app.example", "r", json!({ neap::AUTH: "key", neap::AUTH_SECRET: "keys" }));
        let ask = async |fields: &[(&'static str, &str)]| {
            let (head, body) = world.send(EXTERNAL, with("app.example", fields)).await;
            let challenge = head.headers().get("www-authenticate").map(|v| v.to_str().expect("text").to_owned());
            (head.status().as_u16(), challenge, body)
        };
        assert_eq!(ask(&[("x-api-key", "first")]).await.0, 503, "no Secret, no way in");
        world.secret("keys", neap::AUTH_KEYS_TYPE, json!({ "old": "Zmlyc3Q=", "new": "c2Vjb25k" }));
        let (status, challenge, _) = ask(&[]).await;
        assert_eq!((status, challenge.as_deref()), (401, Some("Bearer")));
        let (status, challenge, _) = ask(&[("x-api-key", "third")]).await;
        assert!(status == 401 && challenge.expect("says why").contains("invalid_token"));
        for fields in [[("x-api-key", "first")], [("authorization", "Bearer second")]] {
            let (status, _, body) = ask(&fields).await;
            assert_eq!(status, 200);
            assert!(!body.contains("api-key") && !body.contains("authorization"), "{body}");
        }
        let (_, _, body) = ask(&[("x-api-key", "first"), ("authorization", "Basic dTpw")]).await;
        assert!(body.contains("authorization: Basic dTpw"), "what was not used is passed on: {body}");
        world.secret("keys", neap::AUTH_KEYS_TYPE, json!({ "new": "c2Vjb25k" }));
        assert_eq!(ask(&[("x-api-key", "first")]).await.0, 401, "taken away");
        world.secret("keys", "Opaque", json!({ "new": "c2Vjb25k" }));
        assert_eq!(ask(&[("x-api-key", "second")]).await.0, 503, "a Secret of another type is none of ours");
        route(&world, "app", "app.example", "r", json!({ neap::AUTH: "kee" }));
        assert_eq!(ask(&[("x-api-key", "second")]).await.0, 503, "what nobody understands opens nothing");
        assert_eq!(world.was_woken(), None);
    })
    .await;
}

#[tokio::test]
async fn no_way_leads_around_the_key() {
    local(async {
        let world = World::new();
        world.feed::<neap_api::serving::Revision>(json!({
            "apiVersion": "serving.knative.dev/v1", "kind": "Revision",
            "metadata": { "namespace": "ns", "name": "r", "labels": { "serving.knative.dev/service": "app" } },
            "spec": { "containers": [{ "image": "x" }] },
        }));
        world.instances("r-private", "http", &[named("a").await]);
        let paths = json!({ "paths": [path_to_revision("r")] });
        world.annotated_ingress(
            "app",
            json!({ neap::AUTH: "key", neap::AUTH_SECRET: "keys" }),
            json!({ "rules": [
                { "hosts": ["app.example"], "http": paths },
                { "hosts": ["app.ns.svc.cluster.local"], "visibility": "ClusterLocal", "http": paths },
            ]}),
        );
        world.ingress(
            "shop.example",
            json!({ "rules": [{ "hosts": ["shop.example"], "http": { "paths":
                [path_to_service("app", json!({ "rewriteHost": "app.ns.svc.cluster.local" }))] } }] }),
        );
        world.secret("keys", neap::AUTH_KEYS_TYPE, json!({ "a": "Zmlyc3Q=" }));
        for (door, host) in [
            (EXTERNAL, "app.example"),
            (LOCAL, "app.example"),
            (LOCAL, "app.ns.svc.cluster.local"),
            (EXTERNAL, "shop.example"),
            (LOCAL, "r.ns.svc.cluster.local"),
            (LOCAL, "r.ns"),
        ] {
            assert_eq!(world.get(door, host, "/").await.0, 401, "{host}");
            assert_eq!(world.send(door, with(host, &[("x-api-key", "first")])).await.0.status(), 200, "{host}");
        }
        // A probe is answered by the gateway, and tells nothing of the application.
        let probe = with("app.example", &[("k-network-probe", "probe"), ("k-network-hash", "override")]);
        assert_eq!(world.send(EXTERNAL, probe).await.0.status(), 200);
        let odd = with("app.example", &[("k-network-probe", "queue")]);
        assert_eq!(world.send(EXTERNAL, odd).await.0.status(), 400);
    })
    .await;
}

#[tokio::test]
async fn tokens_open_and_their_claims_are_told() {
    local(async {
        let world = World::with_app(json!({}));
        world.instances("r-private", "http", &[mirror().await]);
        route(
            &world,
            "app",
            "app.example",
            "r",
            json!({ neap::AUTH: "jwt", neap::AUTH_ISSUER: "https://id", neap::AUTH_AUDIENCE: "app",
                    neap::AUTH_SECRET: "keys", neap::AUTH_CLAIMS: "sub=X-Sub,email=X-Mail",
                    neap::AUTH_REQUIRE: "group=ops" }),
        );
        let signer = Signer::ed25519("1");
        let set = json!({ "keys": [signer.public()] }).to_string();
        let standard = |text: &str| base64::Engine::encode(&base64::engine::general_purpose::STANDARD, text);
        let secret = "a secret that is long enough for it";
        let data =
            json!({ "jwks.json": standard(&set), "hs256": standard(secret), "note": standard("a note, nothing else") });
        world.secret("keys", neap::AUTH_KEYS_TYPE, data);
        let claims = |more: Value| {
            let mut claims = json!({ "iss": "https://id", "aud": "app", "exp": unix_now() + 60, "sub": "ann",
                                     "group": ["ops"] });
            claims.as_object_mut().expect("fields").extend(more.as_object().expect("fields").clone());
            claims
        };
        let ask = async |token: &str| {
            let request = with(
                "app.example",
                &[
                    ("authorization", &format!("Bearer {token}")),
                    ("x-mail", "spoofed"),
                    ("x-sub", "spoofed"),
                    ("X_Sub", "spoofed"),
                ],
            );
            let (head, body) = world.send(EXTERNAL, request).await;
            (head.status().as_u16(), body)
        };
        let (status, body) = ask(&signer.sign(&claims(json!({})))).await;
        assert_eq!(status, 200, "{body}");
        assert!(body.contains("\nx-sub: ann") && !body.contains("spoofed") && !body.contains("x-mail"), "{body}");
        assert!(body.contains("authorization: Bearer "), "the application may look at the token itself: {body}");
        assert_eq!(
            ask(&signer.sign(&claims(json!({ "sub": "a\nb" })))).await.0,
            200,
            "what no header can hold is left out"
        );
        assert_eq!(ask(&signer.sign(&claims(json!({ "aud": "other" })))).await.0, 401);
        assert_eq!(ask(&signer.sign(&claims(json!({ "exp": 1 })))).await.0, 401);
        assert_eq!(ask(&signer.sign(&claims(json!({ "group": "dev" })))).await.0, 403);
        assert_eq!(ask(&Signer::ed25519("1").sign(&claims(json!({})))).await.0, 401, "somebody else's key");
        assert_eq!(ask("").await.0, 401);
        let hs256 = |key: &[u8]| {
            let b64 = |text: String| base64::Engine::encode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, text);
            let signed = format!("{}.{}", b64(r#"{"alg":"HS256"}"#.into()), b64(claims(json!({})).to_string()));
            let tag = ring::hmac::sign(&ring::hmac::Key::new(ring::hmac::HMAC_SHA256, key), signed.as_bytes());
            let tag = base64::Engine::encode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, tag);
            format!("{signed}.{tag}")
        };
        assert_eq!(ask(&hs256(secret.as_bytes())).await.0, 200);
        for other in ["other", "a note, nothing else", &set] {
            assert_eq!(ask(&hs256(other.as_bytes())).await.0, 401, "{other}");
        }
        let good = format!("Bearer {}", signer.sign(&claims(json!({}))));
        let twice = with("app.example", &[("authorization", &good), ("authorization", "Bearer unverified")]);
        assert_eq!(world.send(EXTERNAL, twice).await.0.status(), 401);
        world.secret("keys", neap::AUTH_KEYS_TYPE, json!({ "keys.json": standard(&set) }));
        assert_eq!(ask(&hs256(set.as_bytes())).await.0, 503);
    })
    .await;
}

/// One that answers after a while, and notes that it was asked.
async fn slow(name: &'static str, after: Rc<Cell<u64>>, asked: Rc<RefCell<Vec<&'static str>>>) -> std::net::SocketAddr {
    instance(move |_| {
        asked.borrow_mut().push(name);
        let after = after.get();
        async move {
            sleep(Duration::from_millis(after)).await;
            name.to_owned()
        }
    })
    .await
}

#[tokio::test(start_paused = true)]
async fn a_slow_instance_is_not_waited_for_alone() {
    local(async {
        let world = World::with_app(json!({ "containerConcurrency": 1 }));
        route(&world, "app", "app.example", "r", json!({ neap::HEDGE_AFTER: "50ms" }));
        let asked = Rc::new(RefCell::new(Vec::new()));
        let (of_a, of_b) = (Rc::new(Cell::new(10_000)), Rc::new(Cell::new(10)));
        let a = slow("a", of_a.clone(), asked.clone()).await;
        let b = slow("b", of_b.clone(), asked.clone()).await;
        world.instances("r-private", "http", &[a, b]);
        let gate = world.plane.gates().remove(0);
        let slow_one = if a < b { &of_a } else { &of_b };
        let quick_one = if a < b { &of_b } else { &of_a };
        // The first in the order of addresses is asked first.
        slow_one.set(10_000);
        quick_one.set(10);
        let began = Instant::now();
        let (head, _) = world.send(EXTERNAL, get("app.example", "/")).await;
        assert_eq!(head.status(), 200);
        assert!((60..100).contains(&began.elapsed().as_millis()), "{:?}", began.elapsed());
        assert_eq!((asked.borrow().len(), world.front.hedges.counts()), (2, (1, 1)));
        let seen = gate.observe();
        assert_eq!(
            (seen.totals.requests, seen.totals.by_class[2], seen.present),
            (1, 1, 0),
            "one request, counted once"
        );
        assert!(seen.instances.iter().all(|(_, busy)| *busy == 0), "both places are given back: {seen:?}");
        // The budget: one saved at first, then one in twenty.
        for _ in 0..10 {
            slow_one.set(200);
            assert_eq!(world.get(EXTERNAL, "app.example", "/").await.0, 200);
        }
        assert_eq!(world.front.hedges.counts().0, 1);
        for _ in 0..10 {
            assert_eq!(world.get(EXTERNAL, "app.example", "/").await.0, 200);
        }
        assert_eq!(world.front.hedges.counts().0, 2);
        assert_eq!((gate.observe().totals.requests, gate.observe().present), (21, 0));
        // What may not be repeated is not; what is quick has no need.
        let before = asked.borrow().len();
        let post = http::Request::post("/").header("host", "app.example").body(Body::empty()).expect("a request");
        assert_eq!(world.send(EXTERNAL, post).await.0.status(), 200);
        let put = http::Request::put("/").header("host", "app.example").body(Body::full("x")).expect("a request");
        assert_eq!(world.send(EXTERNAL, put).await.0.status(), 200);
        assert_eq!(asked.borrow().len(), before + 2);
        advance(Duration::from_secs(1)).await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_hedge_needs_another_instance_with_room() {
    local(async {
        let world = World::with_app(json!({ "containerConcurrency": 1, "timeoutSeconds": 2 }));
        route(&world, "app", "app.example", "r", json!({ neap::HEDGE_AFTER: "50ms" }));
        let asked = Rc::new(RefCell::new(Vec::new()));
        let only = slow("a", Rc::new(Cell::new(5_000)), asked.clone()).await;
        world.instances("r-private", "http", &[only]);
        let (status, _) = world.get(EXTERNAL, "app.example", "/").await;
        assert_eq!((status, asked.borrow().len(), world.front.hedges.counts()), (504, 1, (0, 0)));
        let gate = world.plane.gates().remove(0);
        assert_eq!((gate.observe().totals.by_class[5], gate.observe().present), (1, 0));
        // The client goes away in the middle: nothing is left behind.
        let request = world.send(EXTERNAL, get("app.example", "/"));
        assert!(tokio::time::timeout(Duration::from_millis(100), request).await.is_err());
        let seen = gate.observe();
        assert_eq!((seen.present, seen.totals.by_class[0]), (0, 1));
        assert!(seen.instances.iter().all(|(_, busy)| *busy == 0));
    })
    .await;
}

#[tokio::test]
async fn a_body_of_an_answer_keeps_its_request_counted() {
    local(async {
        let world = World::with_app(json!({}));
        route(&world, "app", "app.example", "r", json!({ neap::HEDGE_AFTER: "1s" }));
        world.instances("r-private", "http", &[named("a").await]);
        let gate = world.plane.gates().remove(0);
        let response = world.front.handle(get("app.example", "/"), &connection(EXTERNAL)).await;
        assert_eq!(gate.observe().present, 1);
        let body = response.into_body().collect().await.expect("whole").to_bytes();
        assert_eq!((&*body, gate.observe().present), (&b"a"[..], 0));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_request_that_may_be_hedged_waits_like_others_and_goes_on_to_the_next_gate() {
    local(async {
        let world = World::with_app(json!({ "timeoutSeconds": 300 }));
        route(&world, "app", "app.example", "r", json!({ neap::HEDGE_AFTER: "50ms" }));
        let addr = named("awake").await;
        let before = world.plane.gates().remove(0);
        let changes = async {
            sleep(Duration::from_secs(1)).await;
            assert_eq!((before.observe().waiting, before.observe().totals.waited), (1, 1));
            world.revision("r", json!({ "timeoutSeconds": 200 }));
            sleep(Duration::from_secs(1)).await;
            world.instances("r-private", "http", &[addr]);
        };
        let began = Instant::now();
        let (answer, ()) = tokio::join!(world.get(EXTERNAL, "app.example", "/"), changes);
        assert_eq!((answer, began.elapsed().as_secs()), ((200, "awake".into()), 2));
        // Counted once, where it came in.
        assert_eq!((before.observe().totals.requests, before.observe().present), (1, 0));
        let after = world.plane.collect(Instant::now());
        assert!(after.iter().all(|stat| stat.concurrency == 0), "{after:?}");
    })
    .await;
}
