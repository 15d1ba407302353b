use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use neap_runtime::image::{Config, ImageConfig, Images};
use neap_runtime::pod::PullPolicy;

use super::*;

struct Served {
    host: String,
    images: Images,
    client: Client<HttpConnector, Full<Bytes>>,
    _dir: tempfile::TempDir,
    _server: JoinSet<()>,
}

async fn served() -> Served {
    served_with(Access::default()).await
}

async fn served_with(access: Access) -> Served {
    let dir = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let config = Config { local_registries: vec![host.clone()], ..Config::default() };
    let images = Images::open(dir.path(), config).unwrap();
    let mut server = JoinSet::new();
    server.spawn(serve_with(listener, images.clone(), access, CancellationToken::new()));
    Served { host, images, client: Client::builder(TokioExecutor::new()).build_http(), _dir: dir, _server: server }
}

impl Served {
    async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Response<Bytes> {
        let uri = if path.starts_with('/') { format!("http://{}{path}", self.host) } else { path.to_owned() };
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(Bytes::copy_from_slice(body))).unwrap();
        let (parts, body) = self.client.request(request).await.unwrap().into_parts();
        Response::from_parts(parts, body.collect().await.unwrap().to_bytes())
    }

    async fn status(&self, method: &str, path: &str) -> u16 {
        self.send(method, path, &[], b"").await.status().as_u16()
    }

    /// Uploads a blob in one request.
    async fn blob(&self, bytes: &[u8]) -> String {
        let digest = digest_of(bytes);
        let path = format!("/v2/x/blobs/uploads/?digest={}", digest.replace(':', "%3A"));
        assert_eq!(self.send("POST", &path, &[], bytes).await.status(), StatusCode::CREATED);
        digest
    }

    async fn image(&self, tag: &str) -> Response<Bytes> {
        let (layer, config) = (vec![0; 1024], br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":["sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef"]}}"#);
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": self.blob(config).await, "size": config.len()},
            "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": self.blob(&layer).await, "size": 1024}],
        });
        self.send("PUT", &format!("/v2/x/manifests/{tag}"), &[], manifest.to_string().as_bytes()).await
    }
}

fn digest_of(bytes: &[u8]) -> String {
    use sha2::Digest;
    let hash = sha2::Sha256::digest(bytes);
    format!("sha256:{}", hash.iter().map(|b| format!("{b:02x}")).collect::<String>())
}

fn text<'a>(reply: &'a Response<Bytes>, header: &str) -> &'a str {
    reply.headers().get(header).map_or("", |v| v.to_str().unwrap())
}

fn code(reply: &Response<Bytes>) -> String {
    let value: serde_json::Value = serde_json::from_slice(reply.body()).unwrap();
    format!("{} {}", reply.status().as_u16(), value["errors"][0]["code"].as_str().unwrap())
}

#[tokio::test]
async fn pages_in_a_browser_are_refused() {
    let served = served().await;
    let origin = [("origin", "http://evil.test"), ("content-type", "text/plain")];
    for path in ["/neap/load?name=x:1", "/v2/x/blobs/uploads/"] {
        assert_eq!(code(&served.send("POST", path, &origin, b"").await), "403 DENIED", "{path}");
    }
}

#[tokio::test]
async fn a_blob_arrives_in_chunks_and_is_read_in_parts() {
    let served = served().await;
    let begun = served.send("POST", "/v2/a/b/blobs/uploads/", &[], b"").await;
    assert_eq!((begun.status(), text(&begun, "range")), (StatusCode::ACCEPTED, "0-0"));
    let upload = text(&begun, "location").to_owned();
    let first = served.send("PATCH", &upload, &[("content-range", "0-4")], b"hello").await;
    assert_eq!((first.status(), text(&first, "range")), (StatusCode::ACCEPTED, "0-4"));
    let torn = served.send("PATCH", &upload, &[("content-range", "9-10")], b"xx").await;
    assert_eq!(code(&torn), "416 BLOB_UPLOAD_INVALID");
    assert_eq!(text(&served.send("GET", &upload, &[], b"").await, "range"), "0-4");
    let digest = digest_of(b"hello world");
    let wrong = format!("{upload}?digest=sha256:{}", "0".repeat(64));
    let last = served.send("PUT", &format!("{upload}?digest={digest}"), &[], b" world").await;
    assert_eq!((last.status(), text(&last, "docker-content-digest")), (StatusCode::CREATED, digest.as_str()));
    assert_eq!(code(&served.send("PUT", &wrong, &[], b"").await), "404 BLOB_UPLOAD_UNKNOWN");

    let path = format!("/v2/a/b/blobs/{digest}");
    let head = served.send("HEAD", &path, &[], b"").await;
    assert_eq!((head.status(), text(&head, "content-length")), (StatusCode::OK, "11"));
    assert_eq!(served.send("GET", &path, &[], b"").await.body().as_ref(), b"hello world");
    let part = served.send("GET", &path, &[("range", "bytes=6-8")], b"").await;
    assert_eq!((part.status(), part.body().as_ref()), (StatusCode::PARTIAL_CONTENT, &b"wor"[..]));
    assert_eq!(text(&part, "content-range"), "bytes 6-8/11");
    assert_eq!(served.send("GET", &path, &[("range", "bytes=11-")], b"").await.status().as_u16(), 416);
    assert_eq!(served.status("DELETE", &path).await, 202);
    assert_eq!(served.status("HEAD", &path).await, 404);
}

#[tokio::test]
async fn content_may_be_named_by_its_sha512() {
    let served = served().await;
    let abc = "sha512:ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f";
    let refused = served.send("POST", &format!("/v2/a/blobs/uploads/?digest={abc}"), &[], b"abd").await;
    assert_eq!(code(&refused), "400 DIGEST_INVALID");
    let taken = served.send("POST", &format!("/v2/a/blobs/uploads/?digest={abc}"), &[], b"abc").await;
    assert_eq!((taken.status(), text(&taken, "docker-content-digest")), (StatusCode::CREATED, abc));
    assert_eq!(served.send("GET", &format!("/v2/a/blobs/{abc}"), &[], b"").await.body().as_ref(), b"abc");
    assert_eq!(served.status("HEAD", &format!("/v2/a/blobs/{}", digest_of(b"abc"))).await, 404);
}

#[tokio::test]
async fn one_push_may_set_several_tags() {
    let served = served().await;
    let pushed = served.image("v1?tag=v1.2&tag=v1.2.3").await;
    assert_eq!((pushed.status(), text(&pushed, "oci-tag")), (StatusCode::CREATED, "v1.2, v1.2.3"));
    let digest = text(&pushed, "docker-content-digest").to_owned();
    for tag in ["v1", "v1.2", "v1.2.3"] {
        let head = served.send("HEAD", &format!("/v2/x/manifests/{tag}"), &[], b"").await;
        assert_eq!(text(&head, "docker-content-digest"), digest, "{tag}");
    }
    assert_eq!(code(&served.image("v1?tag=no%2Ftag").await), "400 TAG_INVALID");
}

#[tokio::test]
async fn a_blob_that_is_not_what_it_claims_is_refused() {
    let served = served().await;
    let upload = text(&served.send("POST", "/v2/a/blobs/uploads/", &[], b"").await, "location").to_owned();
    let claimed = digest_of(b"something else");
    let refused = served.send("PUT", &format!("{upload}?digest={claimed}"), &[], b"content").await;
    assert_eq!(code(&refused), "400 DIGEST_INVALID");
    assert_eq!(served.status("HEAD", &format!("/v2/a/blobs/{claimed}")).await, 404);
    let missing = served.send("PUT", &upload, &[], b"").await;
    assert_eq!(code(&missing), "400 DIGEST_INVALID");
    assert_eq!(served.status("DELETE", "/v2/a/blobs/uploads/none").await, 404);
}

#[tokio::test]
async fn a_pushed_image_runs_at_once_under_its_names() {
    let served = served().await;
    let pushed = served.image("v1").await;
    let digest = text(&pushed, "docker-content-digest").to_owned();
    assert_eq!(pushed.status(), StatusCode::CREATED);
    let port = served.host.rsplit(':').next().unwrap();
    for host in ["localhost", "127.0.0.1"] {
        let name = format!("{host}:{port}/x:v1");
        assert_eq!(served.images.resolve(&name, &[]).await.unwrap(), digest);
        let image = served.images.ensure(&name, PullPolicy::Always, &[]).await.unwrap();
        assert_eq!((image.digest, image.layers.len()), (digest.clone(), 1));
    }
    for identifier in ["v1", &digest] {
        let head = served.send("HEAD", &format!("/v2/x/manifests/{identifier}"), &[], b"").await;
        assert_eq!(head.status(), StatusCode::OK);
        assert_eq!(text(&head, "content-type"), "application/vnd.oci.image.manifest.v1+json");
        assert_eq!(text(&head, "docker-content-digest"), digest);
    }
}

#[tokio::test]
async fn manifests_are_checked_listed_and_deleted() {
    let served = served().await;
    let unknown = serde_json::json!({"schemaVersion": 2, "config": {"mediaType": "c", "digest": digest_of(b"?"), "size": 1}, "layers": []});
    let put = served.send("PUT", "/v2/x/manifests/v1", &[], unknown.to_string().as_bytes()).await;
    assert_eq!(code(&put), "400 MANIFEST_BLOB_UNKNOWN");
    assert_eq!(code(&served.send("PUT", "/v2/x/manifests/v1", &[], b"{").await), "400 MANIFEST_INVALID");
    assert_eq!(code(&served.send("PUT", "/v2/x/manifests/-", &[], b"{}").await), "400 TAG_INVALID");
    assert_eq!(code(&served.send("GET", "/v2/x/tags/list", &[], b"").await), "404 NAME_UNKNOWN");
    assert_eq!(code(&served.send("GET", "/v2/x/manifests/v1", &[], b"").await), "404 MANIFEST_UNKNOWN");
    assert_eq!(code(&served.send("POST", "/v2/x/manifests/v1", &[], b"").await), "405 UNSUPPORTED");
    for tag in ["c", "a", "b"] {
        served.image(tag).await;
    }
    let list: BTreeMap<String, serde_json::Value> =
        serde_json::from_slice(served.send("GET", "/v2/x/tags/list", &[], b"").await.body()).unwrap();
    assert_eq!(list["tags"], serde_json::json!(["a", "b", "c"]));
    let page = served.send("GET", "/v2/x/tags/list?n=1&last=a", &[], b"").await;
    assert_eq!(page.body().as_ref(), br#"{"name":"x","tags":["b"]}"#);
    assert_eq!(text(&page, "link"), "</v2/x/tags/list?n=1&last=b>; rel=\"next\"");
    assert_eq!(served.send("GET", "/v2/_catalog", &[], b"").await.body().as_ref(), br#"{"repositories":["x"]}"#);
    assert_eq!(served.status("DELETE", "/v2/x/manifests/a").await, 202);
    assert_eq!(served.status("GET", "/v2/x/manifests/a").await, 404);
    assert_eq!(served.status("GET", "/v2/x/manifests/b").await, 200);
    let blob = format!("/v2/x/blobs/{}", digest_of(&[0; 1024]));
    assert_eq!(code(&served.send("DELETE", &blob, &[], b"").await), "405 UNSUPPORTED");
}

#[tokio::test]
async fn referrers_are_found_by_their_subject() {
    let served = served().await;
    let digest = text(&served.image("v1").await, "docker-content-digest").to_owned();
    let signature = serde_json::json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "artifactType": "sig/1",
        "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": served.blob(b"{}").await, "size": 2},
        "layers": [], "subject": {"mediaType": "m", "digest": digest, "size": 1},
    })
    .to_string();
    let path = format!("/v2/x/manifests/{}", digest_of(signature.as_bytes()));
    let put = served.send("PUT", &path, &[], signature.as_bytes()).await;
    assert_eq!((put.status(), text(&put, "oci-subject")), (StatusCode::CREATED, digest.as_str()));
    for (filter, found) in [("", 1), ("?artifactType=sig%2F1", 1), ("?artifactType=other", 0)] {
        let reply = served.send("GET", &format!("/v2/x/referrers/{digest}{filter}"), &[], b"").await;
        let index: serde_json::Value = serde_json::from_slice(reply.body()).unwrap();
        assert_eq!(index["manifests"].as_array().unwrap().len(), found, "{filter}");
    }
}

#[tokio::test]
async fn a_mount_of_a_known_blob_is_immediate() {
    let served = served().await;
    let digest = served.blob(b"shared").await;
    let mounted = served.send("POST", &format!("/v2/y/blobs/uploads/?mount={digest}&from=x"), &[], b"").await;
    assert_eq!(mounted.status(), StatusCode::CREATED);
    let unknown = digest_of(b"unknown");
    let begun = served.send("POST", &format!("/v2/y/blobs/uploads/?mount={unknown}&from=x"), &[], b"").await;
    assert_eq!(begun.status(), StatusCode::ACCEPTED);
}

/// Runs a program; `None` when it is not installed.
async fn run(program: &str, arguments: &[&str], dir: &Path) -> Option<(bool, String)> {
    let command = tokio::process::Command::new(program)
        .args(arguments)
        .current_dir(dir)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    match tokio::time::timeout(Duration::from_secs(60), command).await.expect("the tool ends") {
        Ok(output) => Some((output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())),
        Err(_) => None,
    }
}

/// An image that is not ours (umoci makes it), pushed and pulled by a client that is not ours.
#[tokio::test]
async fn skopeo_pushes_and_pulls() {
    let served = served().await;
    let dir = tempfile::tempdir().unwrap();
    let layout = "layout";
    // A file of our own: umoci sets the mode of the folder that it comes from.
    std::fs::write(dir.path().join("hello"), "#!/bin/sh\n").unwrap();
    for (program, arguments) in [
        ("umoci", vec!["init", "--layout", layout]),
        ("umoci", vec!["new", "--image", "layout:tag"]),
        ("umoci", vec!["insert", "--rootless", "--image", "layout:tag", "hello", "/bin/hello"]),
        ("umoci", vec!["config", "--image", "layout:tag", "--config.cmd", "/bin/hello"]),
    ] {
        match run(program, &arguments, dir.path()).await {
            None => return println!("skipped: {program} is not installed"),
            Some((ok, errors)) => assert!(ok, "{program} {arguments:?}: {errors}"),
        }
    }
    let target = format!("docker://{}/tools/hello:v1", served.host);
    let push = ["--insecure-policy", "copy", "--dest-tls-verify=false", "oci:layout:tag", &target];
    let Some((ok, errors)) = run("skopeo", &push, dir.path()).await else {
        return println!("skipped: skopeo is not installed");
    };
    assert!(ok, "{errors}");
    let name = format!("{}/tools/hello:v1", served.host);
    let image = served.images.ensure(&name, PullPolicy::Always, &[]).await.unwrap();
    assert_eq!(image.config.cmd, ["/bin/hello"]);
    assert!(image.layers.iter().any(|layer| layer.join("bin/hello").exists()));
    for (format, file) in [("docker-archive", "saved.tar:app:1"), ("oci-archive", "oci.tar:app:2")] {
        let destination = format!("{format}:{file}");
        let pull = ["--insecure-policy", "copy", "--src-tls-verify=false", &target, &destination];
        let (ok, errors) = run("skopeo", &pull, dir.path()).await.expect("it ran before");
        assert!(ok, "{errors}");
    }
    // And back in as files, into a store that knows nothing of them.
    let fresh = tempfile::tempdir().unwrap();
    let images = Images::open(fresh.path(), Config::default()).unwrap();
    for (file, name) in [("saved.tar", "app:1"), ("oci.tar", "app:2")] {
        images.load_file(&dir.path().join(file), None).await.unwrap();
        let image = images.ensure(name, PullPolicy::Always, &[]).await.unwrap();
        assert!(image.layers.iter().any(|layer| layer.join("bin/hello").exists()), "{file}");
    }
}

#[tokio::test]
async fn the_inventory_knows_names_of_other_registries_too() {
    let served = served().await;
    assert_eq!(served.image("1").await.status(), StatusCode::CREATED);
    let loaded = served.images.import_files("hello:1", &[("app", 0o755, b"x")], ImageConfig::default()).await.unwrap();
    let list = async || {
        let reply = served.send("GET", "/neap/images", &[], b"").await;
        let list: serde_json::Value = serde_json::from_slice(reply.body()).unwrap();
        let entries = list["images"].as_array().unwrap().clone();
        entries.iter().map(|e| format!("{} {} {}", e["name"], e["tag"], e["origin"])).collect::<Vec<_>>()
    };
    let port = served.host.rsplit_once(':').unwrap().1;
    let own = format!("\"localhost:{port}/x\" \"1\" \"given\"");
    assert_eq!(list().await, [r#""docker.io/library/hello" "1" "given""#.to_owned(), own.clone()]);
    assert!(loaded.starts_with("sha256:"));
    assert_eq!(served.status("DELETE", "/neap/images?name=hello%3A1").await, 200);
    assert_eq!(list().await, [own]);
    assert_eq!(served.status("DELETE", "/neap/images?name=hello:1").await, 404);
    assert_eq!(served.status("DELETE", "/neap/images").await, 400);
    assert_eq!(served.status("DELETE", "/neap/images?name=A%20b").await, 400);
}

/// As everybody is seen who comes from elsewhere, and everybody at all where pods share the machine's network.
#[tokio::test]
async fn strangers_pull_and_change_nothing() {
    let known: Check = Arc::new(|token| Box::pin(async move { token == "secret" }));
    for check in [None, Some(known)] {
        let with_password = check.is_some();
        let served = served_with(Access { trust_this_machine: false, check }).await;
        served.images.import_files("hello:1", &[("app", 0o755, b"x")], ImageConfig::default()).await.unwrap();
        let refused = if with_password { "401 UNAUTHORIZED" } else { "403 DENIED" };
        for (method, path) in [
            ("POST", "/v2/x/blobs/uploads/"),
            ("POST", "/neap/load?name=docker.io/library/nginx:latest"),
            ("GET", "/neap/images"),
            ("DELETE", "/neap/images?name=hello:1"),
        ] {
            let reply = served.send(method, path, &[], b"").await;
            assert_eq!(code(&reply), refused, "{method} {path}");
            assert_eq!(text(&reply, "www-authenticate"), if with_password { "Basic realm=\"neap\"" } else { "" });
        }
        assert_eq!(served.images.list().await.unwrap().len(), 1);
        assert_eq!(code(&served.send("GET", "/v2/x/manifests/v1", &[], b"").await), "404 MANIFEST_UNKNOWN");
        let token = [("authorization", "Bearer secret")];
        let opened = served.send("POST", "/v2/x/blobs/uploads/", &token, b"").await;
        assert_eq!(opened.status(), if with_password { StatusCode::ACCEPTED } else { StatusCode::FORBIDDEN });
    }
}
