//! Who may do what: ways to more rights than somebody was given, each of which stood open once. And what a write promises
//! to whoever shares an object with others.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails there")]

mod kinds;

use bytes::Bytes;
use http::{HeaderValue, Request};
use http_body_util::{BodyExt, Full};
use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::UserInfo;
use neap_apiserver::auth::token::Signer;
use neap_apiserver::{ApiServer, Caller, Config, Registry, auth};
use neap_store::Store;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";
const ROLES: &str = "/apis/rbac.authorization.k8s.io/v1/namespaces/ns/roles";
const BINDINGS: &str = "/apis/rbac.authorization.k8s.io/v1/namespaces/ns/rolebindings";
const PODS: &str = "/api/v1/namespaces/ns/pods";
const WIDGETS: &str = "/apis/ex.dev/v1/namespaces/ns/widgets";
const SELF: &str = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
const MERGE: &str = "application/merge-patch+json";
const APPLY: &str = "application/apply-patch+yaml";

struct Cluster(ApiServer);

impl Cluster {
    async fn with(prepare: impl FnOnce(&Registry)) -> Self {
        let registry = Registry::new();
        registry.register_all(&kinds::kubernetes()).unwrap();
        registry.register(&kinds::widgets()).unwrap();
        prepare(&registry);
        let mut config = Config::new(Arc::new(|| Timestamp::from_second(1_767_225_600).unwrap()), 1);
        config.signer = Some(Arc::new(Signer::new(&Signer::generate().unwrap(), "https://here", "here").unwrap()));
        config.tokens.insert("fixed".into(), auth::user("somebody", &[]));
        let cluster = Self(ApiServer::new(Store::memory(), registry, config));
        cluster.admin("POST", "/api/v1/namespaces", json!({"metadata": {"name": "ns"}}), 201).await;
        cluster
    }

    async fn new() -> Self {
        Self::with(|_| {}).await
    }

    async fn send(&self, user: UserInfo, request: Request<Full<Bytes>>) -> (u16, Value) {
        let response = self.0.answer(request, Caller::outside(Some(user))).await;
        let code = response.status().as_u16();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (code, serde_json::from_slice(&bytes).unwrap_or_default())
    }

    /// A request of a user; `method` may be `APPLY`.
    async fn ask(&self, user: UserInfo, method: &str, path: &str, body: Value) -> (u16, Value) {
        let (method, media) = match method {
            "APPLY" => ("PATCH", APPLY),
            "PATCH" => ("PATCH", MERGE),
            other => (other, "application/json"),
        };
        let request = Request::builder().method(method).uri(path).header("content-type", media);
        let body = if body.is_null() { String::new() } else { body.to_string() };
        self.send(user, request.body(Full::from(body)).unwrap()).await
    }

    #[track_caller]
    fn admin(&self, method: &str, path: &str, body: Value, want: u16) -> impl Future<Output = Value> {
        let at = std::panic::Location::caller();
        async move {
            let (code, answer) = self.ask(auth::admin("tester"), method, path, body).await;
            assert_eq!(code, want, "{at}: {answer}");
            answer
        }
    }

    /// What eve is answered, who may do what the rules say, in `ns`.
    #[track_caller]
    fn eve(&self, method: &str, path: &str, body: Value, want: u16) -> impl Future<Output = Value> {
        let at = std::panic::Location::caller();
        async move {
            let (code, answer) = self.ask(eve(), method, path, body).await;
            assert_eq!(code, want, "{at}: {answer}");
            answer
        }
    }

    async fn grant(&self, name: &str, rules: Value) {
        self.admin("POST", ROLES, json!({"metadata": {"name": name}, "rules": rules}), 201).await;
        self.admin("POST", BINDINGS, binding(name, "Role", name), 201).await;
    }
}

fn eve() -> UserInfo {
    auth::user("eve", &["system:authenticated"])
}

fn rule(groups: &[&str], resources: &[&str], verbs: &[&str]) -> Value {
    json!({"apiGroups": groups, "resources": resources, "verbs": verbs})
}

fn binding(name: &str, kind: &str, role: &str) -> Value {
    json!({"metadata": {"name": name}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": role},
        "subjects": [{"kind": "User", "name": "eve", "apiGroup": "rbac.authorization.k8s.io"}]})
}

fn widget(name: &str, size: i64) -> Value {
    json!({"apiVersion": "ex.dev/v1", "kind": "Widget", "metadata": {"name": name}, "spec": {"size": size}})
}

#[tokio::test(start_paused = true)]
async fn who_may_patch_may_not_create() {
    let c = Cluster::with(|registry| {
        registry.configure("", "configmaps", |kind| kind.create_on_update = true);
    })
    .await;
    c.grant("r", json!([rule(&["ex.dev", ""], &["widgets", "configmaps"], &["get", "patch", "update"])])).await;
    c.eve("APPLY", &format!("{WIDGETS}/a?fieldManager=m"), widget("a", 1), 403).await;
    c.admin("POST", WIDGETS, widget("a", 1), 201).await;
    c.eve("APPLY", &format!("{WIDGETS}/a?fieldManager=m"), widget("a", 1), 200).await;
    let maps = "/api/v1/namespaces/ns/configmaps";
    c.eve("PUT", &format!("{maps}/a"), json!({"metadata": {"name": "a"}}), 403).await;
    c.admin("PUT", &format!("{maps}/a"), json!({"metadata": {"name": "b"}}), 400).await;
    c.admin("PUT", &format!("{maps}/a"), json!({"metadata": {"name": "a"}}), 201).await;
}

#[tokio::test(start_paused = true)]
async fn impersonation_is_asked_for_in_all_its_parts() {
    let c = Cluster::new().await;
    let role = json!({"metadata": {"name": "i"}, "rules": [rule(&[""], &["users", "groups"], &["impersonate"]),
        rule(&["authentication.k8s.io"], &["userextras/scopes"], &["impersonate"])]});
    c.admin("POST", &format!("{RBAC}/clusterroles"), role, 201).await;
    c.admin("POST", &format!("{RBAC}/clusterrolebindings"), binding("i", "ClusterRole", "i"), 201).await;
    let check = async |user: UserInfo, headers: &[(&str, &[u8])], want: u16, name: &str| {
        let mut request = Request::post(SELF).header("content-type", "application/json");
        for (key, value) in headers {
            request = request.header(*key, HeaderValue::from_bytes(value).unwrap());
        }
        let (code, answer) = c.send(user, request.body(Full::from("{}")).unwrap()).await;
        assert_eq!(code, want, "{headers:?}: {answer}");
        assert_eq!(answer["status"]["userInfo"]["username"].as_str().unwrap_or(""), name, "{headers:?}");
    };
    let admin = || auth::admin("tester");
    check(admin(), &[("impersonate-user", "jürgen".as_bytes())], 201, "jürgen").await;
    check(admin(), &[("impersonate-user", b"j\xfcrgen")], 400, "").await;
    check(admin(), &[("impersonate-user", b"a"), ("impersonate-group", b"\xff")], 400, "").await;
    check(admin(), &[("impersonate-extra-scopes", b"a")], 400, "").await;
    check(admin(), &[("impersonate-uid", b"a")], 400, "").await;
    check(eve(), &[("impersonate-user", b"adam")], 201, "adam").await;
    check(eve(), &[("impersonate-user", b"adam"), ("impersonate-uid", b"1")], 403, "").await;
    check(eve(), &[("impersonate-user", b"adam"), ("impersonate-extra-scopes", b"x")], 201, "adam").await;
    check(eve(), &[("impersonate-user", b"adam"), ("impersonate-extra-other", b"x")], 403, "").await;
}

#[tokio::test(start_paused = true)]
async fn nobody_grants_what_they_do_not_have() {
    let c = Cluster::new().await;
    c.grant(
        "r",
        json!([rule(&["rbac.authorization.k8s.io"], &["*"], &["*"]), rule(&[""], &["pods"], &["get", "list"])]),
    )
    .await;
    let all_roles = rule(&["rbac.authorization.k8s.io"], &["clusterroles"], &["get", "create", "update"]);
    let cluster_role = json!({"metadata": {"name": "c"}, "rules": [all_roles, rule(&[""], &["pods"], &["get"])]});
    c.admin("POST", &format!("{RBAC}/clusterroles"), cluster_role, 201).await;
    c.admin("POST", &format!("{RBAC}/clusterrolebindings"), binding("c", "ClusterRole", "c"), 201).await;

    // She may do everything with roles but escalate and bind, which the star holds: so without it.
    c.admin(
        "PATCH",
        &format!("{ROLES}/r"),
        json!({"rules": [rule(&["rbac.authorization.k8s.io"], &["roles", "rolebindings"], &["get", "create", "update", "patch"]),
            rule(&[""], &["pods"], &["get", "list"])]}),
        200,
    )
    .await;
    let role = |name: &str, rules: Value| json!({"metadata": {"name": name}, "rules": rules});
    c.eve("POST", ROLES, role("a", json!([rule(&[""], &["pods"], &["get"])])), 201).await;
    c.eve("POST", ROLES, role("b", json!([rule(&[""], &["secrets"], &["get"])])), 403).await;
    c.eve("POST", ROLES, role("b", json!([rule(&["*"], &["*"], &["*"])])), 403).await;
    c.eve("PATCH", &format!("{ROLES}/r"), json!({"metadata": {"labels": {"a": "b"}}}), 200).await;
    c.eve("POST", BINDINGS, binding("x", "Role", "a"), 201).await;
    // A role that comes later.
    c.eve("POST", BINDINGS, binding("y", "ClusterRole", "future"), 404).await;
    // Roles that are gathered later.
    let gathers = |name: &str| {
        json!({"metadata": {"name": name}, "rules": [], "aggregationRule": {"clusterRoleSelectors":
            [{"matchExpressions": [{"key": "none", "operator": "DoesNotExist"}]}]}})
    };
    c.eve("POST", &format!("{RBAC}/clusterroles"), gathers("g"), 403).await;
    c.admin("POST", &format!("{RBAC}/clusterroles"), gathers("g"), 201).await;

    // A rule of some kilobytes that comes to millions, and one whose words are long.
    let words = |count: usize| -> Vec<String> { (0..count).map(|n| format!("v{n}")).collect() };
    let (many, long) = (words(30_000), vec!["v".repeat(500_000); 3]);
    for words in [many, long] {
        let product = json!([{"apiGroups": [""], "resources": words, "verbs": words}]);
        let told = c.eve("POST", ROLES, role("p", product), 403).await;
        assert!(told.to_string().len() < 10_000, "a long answer");
    }
    let own =
        json!([{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"], "resourceNames": words(5_000)}]);
    c.eve("POST", ROLES, role("n", own), 201).await;
}

#[tokio::test(start_paused = true)]
async fn who_may_look_may_not_start_anything() {
    let c = Cluster::with(|registry| {
        for name in ["log", "exec"] {
            registry.connect(
                "",
                "pods",
                name,
                Arc::new(|_| Box::pin(async { http::Response::new(neap_apiserver::codec::full("done")) })),
            );
        }
    })
    .await;
    c.admin("POST", PODS, json!({"metadata": {"name": "p"}, "spec": {"containers": []}}), 201).await;
    c.grant("look", json!([rule(&["*"], &["*"], &["get", "list", "watch", "update", "patch", "delete"])])).await;
    let nothing = || Value::Null;
    c.eve("GET", &format!("{PODS}/p/log"), nothing(), 200).await;
    c.eve("GET", &format!("{PODS}/p/exec?command=id"), nothing(), 403).await;
    c.eve("POST", &format!("{PODS}/p/exec?command=id"), nothing(), 403).await;
    for name in ["exec", "log"] {
        c.eve("GET", &format!("/api/v1/watch/namespaces/ns/pods/p/{name}"), nothing(), 404).await;
        for method in ["PUT", "PATCH", "DELETE"] {
            c.eve(method, &format!("{PODS}/p/{name}?command=id"), nothing(), 405).await;
        }
    }
    c.grant("start", json!([rule(&[""], &["pods/exec"], &["get", "create"])])).await;
    c.eve("GET", &format!("{PODS}/p/exec?command=id"), nothing(), 200).await;
}

#[tokio::test(start_paused = true)]
async fn reviews_answer_about_what_may_be_asked() {
    let c = Cluster::new().await;
    let local = "/apis/authorization.k8s.io/v1/namespaces/ns/localsubjectaccessreviews";
    let about = |namespace: &str| json!({"spec": {"user": "eve", "resourceAttributes": {"namespace": namespace, "verb": "get", "resource": "pods"}}});
    c.admin("POST", local, about("ns"), 201).await;
    c.admin("POST", local, about("other"), 422).await;
    c.admin("POST", local, about(""), 422).await;
    let path = json!({"spec": {"user": "eve", "nonResourceAttributes": {"path": "/", "verb": "get"}}});
    c.admin("POST", local, path, 422).await;

    let accounts = "/api/v1/namespaces/ns/serviceaccounts";
    c.admin("POST", accounts, json!({"metadata": {"name": "s"}}), 201).await;
    let wish = json!({"spec": {"audiences": ["a", "c"], "expirationSeconds": 600}});
    let token = c.admin("POST", &format!("{accounts}/s/token"), wish, 201).await["status"]["token"].clone();
    let review = async |token: &Value, audiences: Value| {
        let ask = json!({"spec": {"token": token, "audiences": audiences}});
        let told = c.admin("POST", "/apis/authentication.k8s.io/v1/tokenreviews", ask, 201).await;
        (told["status"]["authenticated"] == true, told["status"]["audiences"].clone())
    };
    for (name, account, want) in [("p", "s", 201), ("q", "other", 403), ("r", "", 403)] {
        let spec = json!({"containers": [], "serviceAccountName": account});
        c.admin("POST", PODS, json!({"metadata": {"name": name}, "spec": spec}), 201).await;
        let wish = json!({"spec": {"boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": name}}});
        c.admin("POST", &format!("{accounts}/s/token"), wish, want).await;
    }
    assert_eq!(review(&token, json!(["a", "b"])).await, (true, json!(["a"])));
    assert!(!review(&token, json!(["b"])).await.0);
    assert_eq!(review(&json!("fixed"), json!([])).await, (true, json!(["here"])));
    assert!(!review(&json!("fixed"), json!(["a"])).await.0, "a fixed token is for this server");
}

#[tokio::test(start_paused = true)]
async fn the_namespaces_that_everything_rests_on_stay() {
    let c = Cluster::new().await;
    for name in ["default", "kube-system", "kube-public"] {
        c.admin("POST", "/api/v1/namespaces", json!({"metadata": {"name": name}}), 201).await;
        c.admin("DELETE", &format!("/api/v1/namespaces/{name}"), Value::Null, 403).await;
        c.admin("GET", &format!("/api/v1/namespaces/{name}"), Value::Null, 200).await;
    }
}

/// A server on which each change of a widget meets a competing one, once it was read and before it is written.
async fn contested() -> (Cluster, Arc<AtomicBool>) {
    let store = Arc::new(std::sync::OnceLock::<Store>::new());
    let armed = Arc::new(AtomicBool::new(false));
    let (kept, switch) = (store.clone(), armed.clone());
    let c = Cluster::with(|registry| {
        registry.admit(
            "ex.dev",
            "Widget",
            Arc::new(move |request| {
                if switch.swap(false, Ordering::Relaxed) {
                    let store = kept.get().unwrap();
                    let key = store.range(b"", None, usize::MAX, None).unwrap().entries;
                    let entry = key.into_iter().find(|e| e.key.ends_with(b"widgets/ns/a")).unwrap();
                    let txn = neap_store::Txn::new().put(entry.key, neap_store::Expect::Any, entry.value);
                    store.commit(txn).unwrap();
                }
                Ok((request.object.clone().unwrap(), Vec::new()))
            }),
        );
    })
    .await;
    assert!(store.set(c.0.store().clone()).is_ok());
    c.admin("POST", WIDGETS, widget("a", 1), 201).await;
    (c, armed)
}

#[tokio::test(start_paused = true)]
async fn who_names_no_version_is_tried_again() {
    let (c, armed) = contested().await;
    let at = format!("{WIDGETS}/a");
    let check = async |method: &str, path: &str, body: Value, want: u16| {
        armed.store(true, Ordering::Relaxed);
        let answer = c.admin(method, path, body, want).await;
        assert!(!armed.load(Ordering::Relaxed), "{method} {path} met no competitor");
        answer
    };
    check("PATCH", &at, json!({"metadata": {"labels": {"a": "b"}}}), 200).await;
    check("PATCH", &format!("{at}/scale"), json!({"spec": {"replicas": 4}}), 200).await;
    check("APPLY", &format!("{at}?fieldManager=m&force=true"), widget("a", 5), 200).await;
    // Whoever names the version they saw is told that it is not the latest any more.
    let mut seen = c.admin("GET", &at, Value::Null, 200).await;
    seen["spec"]["size"] = json!(7);
    let version = seen["metadata"]["resourceVersion"].clone();
    check("PUT", &at, seen, 409).await;
    let version_now = c.admin("GET", &at, Value::Null, 200).await["metadata"]["resourceVersion"].clone();
    assert_ne!(version, version_now);
    check("PATCH", &at, json!({"metadata": {"resourceVersion": version_now}, "spec": {"size": 6}}), 409).await;
}

#[tokio::test(start_paused = true)]
async fn what_an_endpoint_resets_is_owned_by_nobody() {
    let c = Cluster::new().await;
    c.admin("POST", WIDGETS, widget("a", 1), 201).await;
    let at = format!("{WIDGETS}/a");
    c.admin("PATCH", &format!("{at}/status?fieldManager=controller"), json!({"status": {"size": 1}}), 200).await;
    let mut read = widget("a", 1);
    read["status"] = json!({"size": 7, "ready": true});
    let applied = c.admin("APPLY", &format!("{at}?fieldManager=me"), read.clone(), 200).await;
    assert_eq!(applied["status"], json!({"size": 1}));
    let managers = applied["metadata"]["managedFields"].as_array().unwrap();
    let mine = managers.iter().find(|m| m["manager"] == "me").unwrap();
    assert!(mine["fieldsV1"].get("f:status").is_none(), "{mine}");
    read["spec"]["size"] = json!(9);
    let status = c.admin("APPLY", &format!("{at}/status?fieldManager=me&force=true"), read, 200).await;
    assert_eq!((&status["spec"]["size"], &status["status"]["size"]), (&json!(1), &json!(7)));
}

#[tokio::test(start_paused = true)]
async fn dry_runs_of_subresources_leave_no_trace() {
    let c = Cluster::with(|registry| {
        registry.configure("", "pods", |kind| kind.grace = Some(Arc::new(|_| 30)));
    })
    .await;
    c.admin("POST", PODS, json!({"metadata": {"name": "p"}, "spec": {"containers": []}}), 201).await;
    let evict = |name: &str| json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}});
    c.admin("POST", &format!("{PODS}/p/eviction?dryRun=All"), evict("p"), 201).await;
    c.admin("POST", &format!("{PODS}/p/eviction?dryRun=Some"), evict("p"), 422).await;
    c.admin("POST", &format!("{PODS}/p/eviction"), evict("other"), 400).await;
    c.admin("POST", &format!("{PODS}/p/binding?dryRun=All"), json!({"target": {"name": "n"}}), 201).await;
    c.admin("DELETE", &format!("{PODS}?dryRun=All"), Value::Null, 200).await;
    let pod = c.admin("GET", &format!("{PODS}/p"), Value::Null, 200).await;
    assert_eq!((pod["metadata"].get("deletionTimestamp"), pod["spec"].get("nodeName")), (None, None));
    // A second delete that gives less time ends it sooner, for whoever looks at either field.
    c.admin("DELETE", &format!("{PODS}/p"), Value::Null, 200).await;
    let sooner = c.admin("DELETE", &format!("{PODS}/p"), json!({"gracePeriodSeconds": 5}), 200).await;
    assert_eq!(sooner["metadata"]["deletionTimestamp"], "2026-01-01T00:00:05Z");
}

#[tokio::test(start_paused = true)]
async fn a_definition_keeps_its_name_and_takes_nothing_new_while_it_goes() {
    let c = Cluster::new().await;
    let path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    let definition = |plural: &str, kind: &str| {
        json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {"name": format!("{plural}.my.dev")},
            "spec": {"group": "my.dev", "scope": "Cluster", "names": {"plural": plural, "kind": kind},
                "versions": [{"name": "v1", "served": true, "storage": true,
                    "schema": {"openAPIV3Schema": {"type": "object"}}}]}})
    };
    c.admin("POST", path, definition("foos", "Foo"), 201).await;
    c.admin("POST", path, definition("bars", "Bar"), 201).await;
    c.admin("PATCH", &format!("{path}/foos.my.dev"), json!({"spec": {"names": {"plural": "bars"}}}), 422).await;
    let mut scaled = definition("quxes", "Qux");
    for (wrong, right) in [(".", ".spec.n"), (".metadata.name", ".spec.n"), (".status.n", ".spec.n")] {
        let scale = |path: &str| json!({"scale": {"specReplicasPath": path, "statusReplicasPath": ".status.n"}});
        scaled["spec"]["versions"][0]["subresources"] = scale(wrong);
        c.admin("POST", path, scaled.clone(), 422).await;
        scaled["spec"]["versions"][0]["subresources"] = scale(right);
        c.admin("POST", &format!("{path}?dryRun=All"), scaled.clone(), 201).await;
    }
    let foo = |name: &str, hold: &[&str]| json!({"apiVersion": "my.dev/v1", "kind": "Foo", "metadata": {"name": name, "finalizers": hold}});
    c.admin("POST", "/apis/my.dev/v1/foos", foo("a", &["my.dev/hold"]), 201).await;
    c.admin("DELETE", &format!("{path}/foos.my.dev"), Value::Null, 200).await;
    c.admin("POST", "/apis/my.dev/v1/foos", foo("b", &[]), 405).await;
    // Deleted a second time it goes on where it stopped.
    c.admin("DELETE", &format!("{path}/foos.my.dev"), Value::Null, 200).await;
    c.admin("PATCH", "/apis/my.dev/v1/foos/a", json!({"metadata": {"finalizers": null}}), 200).await;
    c.admin("GET", &format!("{path}/foos.my.dev"), Value::Null, 404).await;
}

#[tokio::test(start_paused = true)]
async fn a_watch_ends_with_the_kind_it_shows() {
    let c = Cluster::new().await;
    let path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    let definition = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "foos.my.dev"},
        "spec": {"group": "my.dev", "scope": "Cluster", "names": {"plural": "foos", "kind": "Foo"},
            "versions": [{"name": "v1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object"}}}]}});
    c.admin("POST", path, definition, 201).await;
    let request =
        Request::get("/apis/my.dev/v1/foos?watch=1&timeoutSeconds=3000").body(Full::<Bytes>::default()).unwrap();
    let mut watch = c.0.answer(request, Caller::outside(Some(auth::admin("tester")))).await.into_body();
    assert!(tokio::time::timeout(std::time::Duration::from_secs(200), watch.frame()).await.is_err(), "it goes on");
    c.admin("DELETE", &format!("{path}/foos.my.dev"), Value::Null, 200).await;
    let ended = tokio::time::timeout(std::time::Duration::from_secs(200), watch.frame()).await;
    assert!(ended.is_ok_and(|frame| frame.is_none()), "nothing of it comes any more");
}
