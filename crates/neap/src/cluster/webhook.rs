//! `neap webhook`: the same admission as on one machine, asked by a cluster's API server (facts A7).
//!
//! It makes its own certificate authority, kept in a Secret so that all copies share it, and writes the webhook
//! configurations that name it: whoever runs it has nothing else to set up.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration};
use k8s_openapi::api::core::v1::{Pod, Secret};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::core::DynamicObject;
use kube::core::admission::{AdmissionRequest, AdmissionResponse, AdmissionReview, Operation};
use kube::core::response::Status;
use kube::{Api, Client, ResourceExt};
use neap_api::keys::config;
use neap_apiserver::pki::{self, Authority};
use neap_logic::admit::admit;
use neap_logic::config::Settings;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::{Base, Error, listen, ready};
use crate::process::now;
use crate::{accept, args};

/// The Secret with the authority, and the Service the API server asks (A7.2, A7.7).
const SECRET: &str = "webhook-certs";
pub(super) const SERVICE: &str = "webhook";
const CERTIFICATE: &str = "ca-cert.pem";
const KEY: &str = "ca-key.pem";
/// Who writes the configurations.
const MANAGER: &str = "neap-webhook";
const DEFAULTING: &str = "/defaulting";
const VALIDATION: &str = "/resource-validation";
const SETTINGS: &str = "/config-validation";
/// Where objects are converted from and to old versions (A7.8).
pub(super) const CONVERSION: &str = "/resource-conversion";
/// Questions at once; an API server waits for the rest.
const CONNECTIONS: usize = 512;
/// An object and what it was before, each of at most 3 MiB, and some words; of objects to convert an API server sends
/// what it lists at once, which is more.
const BODY_MAX: usize = 8 << 20;
const CONVERSION_MAX: usize = 64 << 20;
/// Of all questions together, in MiB: whoever reaches the port may ask, and nobody may use the process up by it.
const ROOM: usize = 128;
/// For a handshake, for a question to arrive, and for what has to be asked before it is answered: an API server waits so
/// long for the answer (`timeoutSeconds`).
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) async fn run(flags: args::Webhook, env: &BTreeMap<String, String>) -> Result<(), Error> {
    let mut base = Base::new(&flags.cluster, env).await?;
    let authority = authority(&base.client).await?;
    let listener = listen(flags.listen, "--listen").await?;
    let address =
        listener.local_addr().map_err(|source| Error::Listen { address: flags.listen, flag: "--listen", source })?;
    let tls = pki::server_config(&authority, &authority.serving(&names(flags.url.as_deref(), address))?)?;
    let door =
        Arc::new(Door { client: base.client.clone(), settings: base.settings.clone(), room: Semaphore::new(ROOM) });
    base.parts.spawn("admission", serve(listener, tls, door, base.stop.clone()));
    // Only now: from here on every write of these kinds waits for this process.
    configure(&base.client, authority.pem(), flags.url.as_deref()).await?;
    ready("webhook");
    base.serve().await
}

/// Under which names the API server may ask.
fn names(url: Option<&str>, address: SocketAddr) -> Vec<String> {
    let inside = ["", ".svc", ".svc.cluster.local"].map(|end| format!("{SERVICE}.{}{end}", config::NAMESPACE));
    let mut names = vec![SERVICE.to_owned(), address.ip().to_string()];
    names.extend(inside);
    let uri = url.and_then(|url| url.parse::<http::Uri>().ok());
    names.extend(uri.and_then(|uri| Some(uri.host()?.trim_matches(['[', ']']).to_owned())));
    names.sort();
    names.dedup();
    names
}

/// The authority all copies share, made by whoever comes first.
async fn authority(client: &Client) -> Result<Authority, Error> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), config::NAMESPACE);
    if let Some(secret) = secrets.get_opt(SECRET).await? {
        return read(&secret);
    }
    let (authority, key) = Authority::create(now())?;
    let mut secret = Secret::default();
    secret.metadata.name = Some(SECRET.into());
    let bytes = |text: &str| ByteString(text.as_bytes().to_vec());
    secret.data = Some([(CERTIFICATE.into(), bytes(authority.pem())), (KEY.into(), bytes(&key))].into());
    match secrets.create(&PostParams::default(), &secret).await {
        Ok(_) => Ok(authority),
        // Another copy was quicker.
        Err(kube::Error::Api(status)) if status.code == 409 => read(&secrets.get(SECRET).await?),
        Err(error) => Err(error.into()),
    }
}

fn read(secret: &Secret) -> Result<Authority, Error> {
    let fail = |why| Error::Secret { name: SECRET, why };
    let text = |key: &str| {
        let bytes = secret.data.as_ref()?.get(key)?;
        String::from_utf8(bytes.0.clone()).ok()
    };
    let (pem, key) =
        (text(CERTIFICATE).ok_or(fail("ca-cert.pem is missing"))?, text(KEY).ok_or(fail("ca-key.pem is missing"))?);
    Authority::from_pem(pem, &key, now()).map_err(|_| fail("the key does not fit"))
}

/// Tells the API server to ask here.
async fn configure(client: &Client, authority: &str, url: Option<&str>) -> Result<(), Error> {
    let target = |path: &str| {
        let bundle = ByteString(authority.as_bytes().to_vec());
        match url {
            Some(url) => json!({"caBundle": bundle, "url": format!("{}{path}", url.trim_end_matches('/'))}),
            None => json!({
                "caBundle": bundle,
                "service": {"namespace": config::NAMESPACE, "name": SERVICE, "port": 443, "path": path},
            }),
        }
    };
    let resources = |group: &str, versions: &[&str], resources: &[&str], operations: &[&str]| json!({"apiGroups": [group], "apiVersions": versions, "operations": operations, "resources": resources, "scope": "*"});
    let rules = |operations: &[&str]| {
        let all = &["*"];
        json!([
            resources("autoscaling.internal.knative.dev", all, &["metrics", "podautoscalers"], operations),
            resources(
                "networking.internal.knative.dev",
                all,
                &["certificates", "ingresses", "serverlessservices"],
                operations
            ),
            // By name: an object of an old version is converted before it is asked about.
            resources(
                neap_api::serving::GROUP,
                &["v1"],
                &["configurations", "revisions", "routes", "services"],
                operations
            ),
            resources(neap_api::serving::GROUP, &["v1beta1"], &["domainmappings", "domainmappings/status"], operations),
        ])
    };
    let hook = |name: &str, path: &str, rules: Value, more: Value| {
        let mut hook = json!({
            "name": name, "clientConfig": target(path), "rules": rules, "failurePolicy": "Fail", "sideEffects": "None",
            "matchPolicy": "Equivalent", "timeoutSeconds": 10, "admissionReviewVersions": ["v1"],
        });
        json_patch::merge(&mut hook, &more);
        hook
    };
    let document = |kind: &str, name: &str, hook: Value| {
        json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": kind,
            "metadata": {"name": name, "labels": {"app.kubernetes.io/name": "knative-serving"}}, "webhooks": [hook],
        })
    };
    let name = "webhook.serving.knative.dev";
    let defaulting = hook(name, DEFAULTING, rules(&["CREATE", "UPDATE"]), json!({"reinvocationPolicy": "IfNeeded"}));
    apply::<MutatingWebhookConfiguration>(client, name, document("MutatingWebhookConfiguration", name, defaulting))
        .await?;
    let name = "validation.webhook.serving.knative.dev";
    let validation = hook(name, VALIDATION, rules(&["CREATE", "UPDATE", "DELETE"]), json!({}));
    apply::<ValidatingWebhookConfiguration>(client, name, document("ValidatingWebhookConfiguration", name, validation))
        .await?;
    let name = "config.webhook.serving.knative.dev";
    let maps = json!([resources("", &["v1"], &["configmaps"], &["CREATE", "UPDATE"])]);
    let components =
        ["autoscaler", "controller", "logging", "networking", "observability", "tracing", "net-certmanager"];
    let only = json!({"objectSelector": {"matchExpressions": [
        {"key": "app.kubernetes.io/name", "operator": "In", "values": ["knative-serving"]},
        {"key": "app.kubernetes.io/component", "operator": "In", "values": components},
    ]}});
    let settings = hook(name, SETTINGS, maps, only);
    apply::<ValidatingWebhookConfiguration>(client, name, document("ValidatingWebhookConfiguration", name, settings))
        .await?;
    // Only what was installed with versions to convert.
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    let converted = definitions.list(&ListParams::default().labels("knative.dev/crd-install=true")).await?;
    for definition in converted.items.iter().filter(|d| d.spec.versions.len() > 1) {
        let mut here = json!({"service": null, "url": null});
        json_patch::merge(&mut here, &target(CONVERSION));
        let patch = json!({"spec": {"conversion": {"strategy": "Webhook", "webhook": {"clientConfig": here}}}});
        definitions.patch(&definition.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await?;
    }
    Ok(())
}

async fn apply<K>(client: &Client, name: &str, document: Value) -> Result<(), Error>
where
    K: kube::Resource<DynamicType = (), Scope = k8s_openapi::ClusterResourceScope>
        + Clone
        + std::fmt::Debug
        + Serialize
        + DeserializeOwned,
{
    let api: Api<K> = Api::all(client.clone());
    let written = api.patch(name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(&document)).await;
    written.map(drop).map_err(|source| Error::Install {
        kind: K::kind(&()).into_owned(),
        name: name.to_owned(),
        source: Box::new(source),
    })
}

/// What answers need.
struct Door {
    client: Client,
    settings: watch::Receiver<Arc<Settings>>,
    /// One permit for each MiB of [`ROOM`].
    room: Semaphore,
}

async fn serve(listener: TcpListener, tls: Arc<rustls::ServerConfig>, door: Arc<Door>, stop: CancellationToken) {
    let acceptor = TlsAcceptor::from(tls);
    accept::each(listener, CONNECTIONS, stop, |stream| {
        let (acceptor, door) = (acceptor.clone(), door.clone());
        async move {
            let stream = match tokio::time::timeout(PATIENCE, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => stream,
                Ok(Err(error)) => return tracing::debug!(%error, "a caller of the webhook speaks no TLS"),
                Err(_) => return,
            };
            let service = service_fn(|request| {
                let door = door.clone();
                async move { Ok::<_, Infallible>(respond(request, &door).await) }
            });
            let mut server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            server.http1().timer(TokioTimer::new());
            server.http2().timer(TokioTimer::new());
            if let Err(error) = server.serve_connection(TokioIo::new(stream), service).await {
                tracing::debug!(%error, "a connection of the API server broke");
            }
        }
    })
    .await;
}

async fn respond(request: Request<Incoming>, door: &Door) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    if head.method == Method::GET {
        return text(StatusCode::OK, "webhook\n");
    }
    let converts = head.uri.path() == CONVERSION;
    let most = if converts { CONVERSION_MAX } else { BODY_MAX };
    let room = door.room.acquire_many(mebibytes(&head.headers, most));
    let Ok(Ok(_room)) = tokio::time::timeout(PATIENCE, room).await else {
        return text(StatusCode::SERVICE_UNAVAILABLE, "too much is asked at once\n");
    };
    let body = Limited::new(body, most).collect();
    let Ok(body) = tokio::time::timeout(PATIENCE, body).await else {
        return text(StatusCode::REQUEST_TIMEOUT, "the review did not arrive in time\n");
    };
    match body {
        Ok(body) if converts => conversion(&body.to_bytes()),
        Ok(body) => {
            let settings = door.settings.borrow().clone();
            let path = head.uri.path();
            match read_review(path, &body.to_bytes()) {
                Ok(request) => {
                    let mut response = decide(path, &request, &settings);
                    if response.allowed
                        && path == VALIDATION
                        && let Err(why) = try_pod(&door.client, &request).await
                    {
                        response = refuse(response, failure(&why));
                    }
                    reviewed(response)
                }
                Err(answer) => *answer,
            }
        }
        Err(error) => text(StatusCode::BAD_REQUEST, &format!("the review cannot be read: {error}")),
    }
}

/// How much room a question takes: as much as it says, or as it may.
fn mebibytes(headers: &http::HeaderMap, most: usize) -> u32 {
    let said = headers.get(http::header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    u32::try_from(said.unwrap_or(most).min(most).div_ceil(1 << 20)).unwrap_or(1).max(1)
}

/// On a dry run the cluster is asked, dryly too, whether it would take the pods (A2.9).
async fn try_pod(client: &Client, request: &AdmissionRequest<DynamicObject>) -> Result<(), String> {
    let Some((namespace, pod)) = pod_of(request) else { return Ok(()) };
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let pod: Pod = match serde_json::from_value(pod) {
        Ok(pod) => pod,
        Err(error) => return Err(format!("validation failed: dry run failed with {error}: spec.template")),
    };
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    let why = match tokio::time::timeout(PATIENCE, pods.create(&dry, &pod)).await {
        Ok(Ok(_)) => return Ok(()),
        Ok(Err(kube::Error::Api(status))) => status.message,
        Ok(Err(error)) => error.to_string(),
        Err(_) => "no answer in time".to_owned(),
    };
    Err(format!("validation failed: dry run failed with {why}: spec.template"))
}

/// The pod that a dry run is about, as far as it is the user's: probes get their ports later, from us.
fn pod_of(request: &AdmissionRequest<DynamicObject>) -> Option<(&str, Value)> {
    let object = request.object.as_ref().filter(|_| request.dry_run && request.operation != Operation::Delete)?;
    let template = match request.kind.kind.as_str() {
        "Service" | "Configuration" => object.data.pointer("/spec/template")?.clone(),
        "Revision" => json!({"spec": object.data.get("spec")?}),
        _ => return None,
    };
    let mut spec = template.get("spec")?.clone();
    let fields = spec.as_object_mut()?;
    // What a Revision says beside its pod.
    for ours in ["containerConcurrency", "timeoutSeconds", "responseStartTimeoutSeconds", "idleTimeoutSeconds"] {
        fields.remove(ours);
    }
    for container in fields.get_mut("containers").and_then(Value::as_array_mut).into_iter().flatten() {
        for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
            container.as_object_mut()?.remove(probe);
        }
    }
    let name = request.name.as_str();
    let pod = json!({
        "metadata": {
            "generateName": format!("{name}-"),
            "labels": template.pointer("/metadata/labels"), "annotations": template.pointer("/metadata/annotations"),
        },
        "spec": spec,
    });
    Some((request.namespace.as_deref()?, pod))
}

fn failure(words: &str) -> Status {
    Status::failure(words, "BadRequest").with_code(400)
}

/// Converts objects.
fn conversion(body: &[u8]) -> Response<Full<Bytes>> {
    match serde_json::from_slice::<Value>(body) {
        Ok(question) => json_response(&neap_logic::convert::review(&question)),
        Err(error) => text(StatusCode::BAD_REQUEST, &format!("no conversion review: {error}")),
    }
}

fn json_response(value: &Value) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::new(Bytes::from(value.to_string())));
    answer.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    answer
}

/// The question of a review; or the answer to what is none.
fn read_review(path: &str, body: &[u8]) -> Result<AdmissionRequest<DynamicObject>, Box<Response<Full<Bytes>>>> {
    if ![DEFAULTING, VALIDATION, SETTINGS].contains(&path) {
        let doors = format!("{DEFAULTING}, {VALIDATION}, {SETTINGS} and {CONVERSION} are here\n");
        return Err(Box::new(text(StatusCode::NOT_FOUND, &doors)));
    }
    let refused = |error: &dyn std::fmt::Display| {
        Box::new(text(StatusCode::BAD_REQUEST, &format!("no admission review: {error}")))
    };
    let review: AdmissionReview<DynamicObject> = serde_json::from_slice(body).map_err(|e| refused(&e))?;
    review.try_into().map_err(|e| refused(&e))
}

fn reviewed(mut response: AdmissionResponse) -> Response<Full<Bytes>> {
    // The library would write bytes as a list of numbers; the contract says base64.
    let patch = response.patch.take().map(|patch| STANDARD.encode(patch));
    let mut review = serde_json::to_value(response.into_review()).expect("a review is JSON");
    if let Some(patch) = patch {
        review["response"]["patch"] = patch.into();
    }
    json_response(&review)
}

fn decide(path: &str, request: &AdmissionRequest<DynamicObject>, settings: &Settings) -> AdmissionResponse {
    let mut response = AdmissionResponse::from(request);
    match admit(request, settings) {
        Ok((admitted, warnings)) => {
            if path != DEFAULTING {
                // Said once: both doors see every write.
                response.warnings = (!warnings.is_empty()).then_some(warnings);
                return response;
            }
            let Some(object) = &request.object else { return response };
            let (Ok(before), Ok(after)) = (serde_json::to_value(object), serde_json::to_value(&admitted)) else {
                return refuse(response, failure("the object cannot be read"));
            };
            let patch = json_patch::diff(&before, &after);
            if patch.is_empty() {
                return response;
            }
            response.with_patch(patch).unwrap_or_else(|error| {
                let status = Status::failure(&format!("the defaults cannot be said: {error}"), "InternalError");
                refuse(AdmissionResponse::from(request), status.with_code(500))
            })
        }
        Err(status) => refuse(response, status),
    }
}

fn refuse(mut response: AdmissionResponse, status: Status) -> AdmissionResponse {
    response.allowed = false;
    response.result = status;
    response
}

fn text(status: StatusCode, words: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(words.to_owned())));
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use neap_api::keys::serving;

    use super::*;

    /// As [`respond`] without what a cluster would say.
    fn review(path: &str, body: &[u8], settings: &Settings) -> Response<Full<Bytes>> {
        match read_review(path, body) {
            Ok(request) => reviewed(decide(path, &request, settings)),
            Err(answer) => *answer,
        }
    }

    fn ask(path: &str, operation: &str, object: Value) -> Value {
        let review = json!({
            "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
            "request": {
                "uid": "u-1", "operation": operation, "name": "hello", "namespace": "default",
                "kind": {"group": "serving.knative.dev", "version": "v1", "kind": "Service"},
                "resource": {"group": "serving.knative.dev", "version": "v1", "resource": "services"},
                "userInfo": {"username": "ada"}, "object": object, "options": {},
            },
        });
        let body = serde_json::to_vec(&review).expect("JSON");
        let response = review_bytes(path, &body);
        response["response"].clone()
    }

    fn review_bytes(path: &str, body: &[u8]) -> Value {
        let response = review(path, body, &Settings::default());
        assert_eq!(response.status(), StatusCode::OK);
        let body = response.into_body().collect().now_or_never().expect("it is there").expect("a body").to_bytes();
        serde_json::from_slice(&body).expect("JSON")
    }

    fn service(image: &str) -> Value {
        json!({
            "apiVersion": "serving.knative.dev/v1", "kind": "Service", "metadata": {"name": "hello", "namespace": "default"},
            "spec": {"template": {"spec": {"containers": [{"image": image}]}}},
        })
    }

    #[test]
    fn a_question_takes_the_room_it_says_or_may() {
        let check = |said: Option<&str>, want: u32| {
            let headers = said.map(|said| (http::header::CONTENT_LENGTH, said.parse().expect("a value")));
            assert_eq!(mebibytes(&headers.into_iter().collect(), BODY_MAX), want, "{said:?}");
        };
        check(None, 8);
        check(Some("10"), 1);
        check(Some("1048577"), 2);
        check(Some("99999999999"), 8);
        check(Some("x"), 8);
        const { assert!(CONVERSION_MAX >> 20 <= ROOM, "the largest must fit") };
    }

    #[test]
    fn a7_2_defaults_travel_as_a_patch() {
        let answer = ask(DEFAULTING, "CREATE", service("a"));
        assert_eq!((&answer["uid"], &answer["allowed"]), (&json!("u-1"), &json!(true)));
        let patch = STANDARD.decode(answer["patch"].as_str().unwrap_or_else(|| panic!("{answer}")));
        let patch: json_patch::Patch = serde_json::from_slice(&patch.expect("base64")).expect("a patch");
        let mut object = service("a");
        json_patch::patch(&mut object, &patch).expect("it fits");
        assert_eq!(object["metadata"]["annotations"][serving::CREATOR], "ada");
        assert_eq!(object["spec"]["template"]["spec"]["timeoutSeconds"], 300);
        // What was admitted needs no further patch.
        assert!(ask(DEFAULTING, "CREATE", object)["patch"].is_null());
    }

    #[test]
    fn a7_3_what_is_wrong_is_refused_with_words() {
        let answer = ask(
            VALIDATION,
            "CREATE",
            json!({
                "apiVersion": "serving.knative.dev/v1", "kind": "Service", "metadata": {"name": "hello"},
                "spec": {"template": {"spec": {"containers": [{"image": "a"}], "containerConcurrency": -1}}},
            }),
        );
        assert_eq!(answer["allowed"], json!(false));
        let words = answer["status"]["message"].as_str().unwrap_or_default();
        assert!(words.contains("containerConcurrency"), "{words}");
        assert_eq!(answer["status"]["code"], 400, "{answer}");
        assert_eq!(ask(VALIDATION, "CREATE", service("a"))["allowed"], json!(true));
    }

    #[test]
    fn a2_9_a_dry_run_is_about_the_users_pod() {
        let check = |dry_run: bool, kind: &str, object: Value, want: Option<Value>| {
            let request = json!({
                "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
                "request": {
                    "uid": "u", "operation": "CREATE", "name": "hello", "namespace": "default", "dryRun": dry_run,
                    "kind": {"group": "serving.knative.dev", "version": "v1", "kind": kind},
                    "resource": {"group": "serving.knative.dev", "version": "v1", "resource": "x"},
                    "userInfo": {}, "object": object, "options": {},
                },
            });
            let body = serde_json::to_vec(&request).expect("JSON");
            let request = read_review(VALIDATION, &body).unwrap_or_else(|_| panic!("a review"));
            let pod = pod_of(&request).map(|(namespace, pod)| (namespace.to_owned(), pod["spec"].clone()));
            assert_eq!(pod, want.map(|spec| ("default".to_owned(), spec)), "{kind}");
        };
        let spec = json!({
            "containers": [{"image": "a", "readinessProbe": {"tcpSocket": {"port": 0}}}], "timeoutSeconds": 9,
            "containerConcurrency": 1, "serviceAccountName": "them",
        });
        let pod = json!({"containers": [{"image": "a"}], "serviceAccountName": "them"});
        let head = |spec: Value| json!({"apiVersion": "v1", "kind": "x", "metadata": {"name": "hello"}, "spec": spec});
        check(true, "Service", head(json!({"template": {"spec": spec}})), Some(pod.clone()));
        check(true, "Revision", head(spec.clone()), Some(pod));
        check(true, "Route", head(json!({})), None);
        check(false, "Service", head(json!({"template": {"spec": spec}})), None);
    }

    #[test]
    fn what_is_no_review_is_said_so() {
        let check = |path: &str, body: &[u8], want: StatusCode| {
            assert_eq!(review(path, body, &Settings::default()).status(), want);
        };
        check(DEFAULTING, b"{", StatusCode::BAD_REQUEST);
        check(
            DEFAULTING,
            b"{\"apiVersion\":\"admission.k8s.io/v1\",\"kind\":\"AdmissionReview\"}",
            StatusCode::BAD_REQUEST,
        );
        check("/other", b"{}", StatusCode::NOT_FOUND);
    }

    #[test]
    fn the_certificate_names_every_way_in() {
        let names = names(Some("https://198.19.0.1:8443/x"), "0.0.0.0:8443".parse().expect("an address"));
        for name in ["webhook", "webhook.knative-serving.svc", "198.19.0.1"] {
            assert!(names.iter().any(|n| n == name), "{name} in {names:?}");
        }
    }
}
