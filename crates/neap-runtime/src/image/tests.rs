use std::sync::atomic::AtomicUsize;

use bytes::Bytes;
use futures::StreamExt;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use tokio::task::JoinSet;

use super::*;

/// A registry of fixed answers on a loopback port. Its knobs are what real registries do wrong.
struct FakeRegistry {
    host: String,
    state: Arc<FakeState>,
    _tasks: JoinSet<()>,
}

#[derive(Default)]
struct FakeState {
    /// Path to content type and content.
    answers: Mutex<HashMap<String, (String, Vec<u8>)>>,
    /// `METHOD path`, in order.
    requests: Mutex<Vec<String>>,
    /// Cut this many blob answers in half.
    cut: AtomicUsize,
    /// Requests that brought a user and a password along.
    logins: AtomicUsize,
    /// `user:password` that a token is given for; without it everything is public.
    login: Mutex<Option<String>>,
}

type Answer = http::Response<http_body_util::combinators::BoxBody<Bytes, std::io::Error>>;

impl FakeRegistry {
    async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let state = Arc::new(FakeState::default());
        let (serving, own) = (state.clone(), host.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (state, own) = (serving.clone(), own.clone());
                connections.spawn(async move {
                    let service = hyper::service::service_fn(move |request| {
                        let answer = state.answer(&own, &request);
                        async move { Ok::<_, std::convert::Infallible>(answer) }
                    });
                    let io = hyper_util::rt::TokioIo::new(stream);
                    // A client that goes away is not the test's concern.
                    let _ = hyper::server::conn::http1::Builder::new().serve_connection(io, service).await;
                });
            }
        });
        Self { host, state, _tasks: tasks }
    }

    fn put(&self, path: &str, media_type: &str, bytes: &[u8]) {
        self.state.answers.lock().unwrap().insert(path.to_owned(), (media_type.to_owned(), bytes.to_vec()));
    }

    /// An image of the given layers (plain tars, sent with gzip), under a tag, inside an index. Returns the index's digest.
    fn put_image(&self, repository: &str, tag: &str, layers: &[Vec<u8>]) -> String {
        let mut descriptors = Vec::new();
        let mut diff_ids = Vec::new();
        let blob = |media_type: &str, bytes: &[u8]| {
            let digest = digest::digest_of(bytes);
            self.put(&format!("/v2/{repository}/blobs/{digest}"), "application/octet-stream", bytes);
            serde_json::json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
        };
        for layer in layers {
            let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            std::io::Write::write_all(&mut gzip, layer).unwrap();
            diff_ids.push(digest::digest_of(layer));
            descriptors.push(blob(manifest::OCI_LAYER_GZIP, &gzip.finish().unwrap()));
        }
        let config = serde_json::json!({
            "architecture": Platform::current().architecture, "os": "linux",
            "config": {"Cmd": ["/hello"], "Env": ["A=b"]}, "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = blob(manifest::OCI_CONFIG, config.to_string().as_bytes());
        let image = serde_json::json!({
            "schemaVersion": 2, "mediaType": manifest::OCI_MANIFEST, "config": config, "layers": descriptors,
        });
        let (image_digest, image) = (digest::digest_of(image.to_string().as_bytes()), image.to_string());
        let index = serde_json::json!({
            "schemaVersion": 2, "mediaType": manifest::OCI_INDEX, "manifests": [
                {"mediaType": manifest::OCI_MANIFEST, "digest": digest::digest_of(b"other"), "size": 1,
                 "platform": {"os": "plan9", "architecture": "mips"}},
                {"mediaType": manifest::OCI_MANIFEST, "digest": image_digest, "size": image.len(),
                 "platform": {"os": "linux", "architecture": Platform::current().architecture}}],
        })
        .to_string();
        let digest = digest::digest_of(index.as_bytes());
        self.put(&format!("/v2/{repository}/manifests/{image_digest}"), manifest::OCI_MANIFEST, image.as_bytes());
        for identifier in [tag, digest.as_str()] {
            self.put(&format!("/v2/{repository}/manifests/{identifier}"), manifest::OCI_INDEX, index.as_bytes());
        }
        digest
    }

    fn requests(&self, containing: &str) -> usize {
        self.state.requests.lock().unwrap().iter().filter(|r| r.contains(containing)).count()
    }

    fn reference(&self, rest: &str) -> String {
        format!("{}/{rest}", self.host)
    }
}

impl FakeState {
    fn answer(&self, host: &str, request: &http::Request<Incoming>) -> Answer {
        let whole = |status: u16, bytes: &[u8]| {
            let body = Full::new(Bytes::copy_from_slice(bytes)).map_err(|never| match never {}).boxed();
            http::Response::builder().status(status).body(body).unwrap()
        };
        let path = request.uri().path().to_owned();
        let range = request.headers().get("range").map(|r| r.to_str().unwrap().to_owned());
        let note = format!("{} {path} {}", request.method(), range.as_deref().unwrap_or_default());
        self.requests.lock().unwrap().push(note);
        let sent = request.headers().get("authorization").map(|a| a.to_str().unwrap().to_owned());
        if sent.as_ref().is_some_and(|sent| sent.starts_with("Basic")) {
            self.logins.fetch_add(1, Ordering::SeqCst);
        }
        if let Some(login) = &*self.login.lock().unwrap() {
            use base64::Engine;
            let basic = format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(login));
            match (path.as_str(), sent.as_deref()) {
                ("/token", Some(given)) if given == basic => return whole(200, br#"{"token":"ticket"}"#),
                ("/token", _) => return whole(401, b"who are you?"),
                (_, Some("Bearer ticket")) => {}
                _ => {
                    let mut answer = whole(401, br#"{"errors":[{"code":"UNAUTHORIZED","message":"no"}]}"#);
                    let challenge = format!("Bearer realm=\"http://{host}/token\",service=\"fake\"");
                    answer.headers_mut().insert("www-authenticate", challenge.parse().unwrap());
                    return answer;
                }
            }
        }
        if path == "/v2/" {
            return whole(200, b"{}");
        }
        if path.starts_with("/v2/endless/") {
            if request.method() == http::Method::HEAD {
                return whole(405, b"");
            }
            let without_end = futures::stream::repeat_with(|| Ok(Frame::data(Bytes::from_static(&[b' '; 65536]))));
            return http::Response::new(BodyExt::boxed(StreamBody::new(without_end)));
        }
        let Some((media_type, bytes)) = self.answers.lock().unwrap().get(&path).cloned() else {
            return whole(404, br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#);
        };
        let start: usize = range.and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()).unwrap_or(0);
        let status = if start > 0 { 206 } else { 200 };
        let rest = bytes[start..].to_vec();
        let is_blob = path.contains("/blobs/") && rest.len() > 64;
        let cut = is_blob && self.cut.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok();
        let mut answer = if cut {
            let half = Bytes::copy_from_slice(&rest[..rest.len() / 2]);
            let frames = futures::stream::iter([Ok(Frame::data(half)), Err(std::io::Error::other("cut"))]);
            let paused = frames.then(|f| async {
                tokio::task::yield_now().await;
                f
            });
            http::Response::builder().status(status).body(BodyExt::boxed(StreamBody::new(paused))).unwrap()
        } else {
            whole(status, &rest)
        };
        answer.headers_mut().insert("content-type", media_type.parse().unwrap());
        if path.contains("/manifests/") {
            answer.headers_mut().insert("docker-content-digest", digest::digest_of(&bytes).parse().unwrap());
        }
        answer
    }
}

fn tar_of(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o755);
        tar.append_data(&mut header, path, *bytes).unwrap();
    }
    tar.into_inner().unwrap()
}

/// Content that does not compress to nothing.
fn noise(n: usize) -> Vec<u8> {
    let mut state = 1_u64;
    std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    })
    .take(n)
    .collect()
}

fn open(dir: &Path) -> Images {
    Images::open(dir, Config { local_registries: vec!["registry.example:5000".into()], ..Config::default() }).unwrap()
}

fn file(image: &Image, name: &str) -> Option<String> {
    image.layers.iter().rev().find_map(|layer| std::fs::read_to_string(layer.join(name)).ok())
}

fn leftovers(dir: &Path) -> Vec<String> {
    let names = std::fs::read_dir(dir.join("incoming")).unwrap();
    names.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect()
}

#[tokio::test]
async fn files_from_memory_become_an_image_with_a_fixed_digest() {
    let dir = tempfile::tempdir().unwrap();
    let images = open(dir.path());
    let config = ImageConfig { entrypoint: vec!["/bin/app".into()], ..ImageConfig::default() };
    let files: [(&str, u32, &[u8]); 2] = [("/bin/app", 0o755, b"program"), ("etc/motd", 0o644, b"hi")];
    let digest = images.import_files("neap.dev/sample", &files, config.clone()).await.unwrap();
    let mut turned = files;
    turned.reverse();
    assert_eq!(images.import_files("neap.dev/sample:again", &turned, config.clone()).await.unwrap(), digest);
    let image = images.ensure("neap.dev/sample", PullPolicy::Always, &[]).await.unwrap();
    assert_eq!((&image.digest, &image.config), (&digest, &config));
    assert_eq!(image.id, format!("neap.dev/sample@{digest}"));
    assert_eq!(file(&image, "etc/motd").as_deref(), Some("hi"));
    assert_eq!(images.resolve("neap.dev/sample", &[]).await.unwrap(), digest);
    // What was made survives a restart.
    let image = open(dir.path()).ensure("neap.dev/sample", PullPolicy::Never, &[]).await.unwrap();
    assert_eq!(file(&image, "bin/app").as_deref(), Some("program"));
}

#[tokio::test]
async fn an_image_is_pulled_once_for_all_who_ask() {
    let (dir, registry) = (tempfile::tempdir().unwrap(), FakeRegistry::start().await);
    let digest = registry.put_image("a/b", "v1", &[tar_of(&[("x", b"1")]), tar_of(&[("x", b"2"), ("y", b"3")])]);
    let images = open(dir.path());
    let reference = registry.reference("a/b:v1");
    let asked = (0..8).map(|_| images.ensure(&reference, PullPolicy::IfNotPresent, &[]));
    for image in futures::future::join_all(asked).await {
        let image = image.unwrap();
        assert_eq!(image.digest, digest);
        assert_eq!((file(&image, "x"), file(&image, "y")), (Some("2".into()), Some("3".into())));
        assert_eq!(image.config.env, [("A".to_owned(), "b".to_owned())]);
    }
    assert_eq!((registry.requests("GET /v2/a/b/manifests/v1"), registry.requests("/blobs/")), (1, 3));
    // Present: no further question; always: one about the manifest; by digest: none.
    let before = registry.requests("");
    images.ensure(&reference, PullPolicy::IfNotPresent, &[]).await.unwrap();
    images.ensure(&format!("{}/a/b@{digest}", registry.host), PullPolicy::Always, &[]).await.unwrap();
    assert_eq!(registry.requests(""), before);
    images.ensure(&reference, PullPolicy::Always, &[]).await.unwrap();
    assert_eq!((registry.requests("GET /v2/a/b/manifests/v1"), registry.requests("/blobs/")), (2, 3));
    assert_eq!(images.resolve(&reference, &[]).await.unwrap(), digest);
    assert_eq!(images.pull_stats().pulls, 2);
    assert_eq!(leftovers(dir.path()), [""; 0]);
}

#[tokio::test]
async fn a_moved_tag_is_followed_only_when_always_asked() {
    let (dir, registry) = (tempfile::tempdir().unwrap(), FakeRegistry::start().await);
    registry.put_image("a", "t", &[tar_of(&[("x", b"old")])]);
    let images = open(dir.path());
    let reference = registry.reference("a:t");
    images.ensure(&reference, PullPolicy::IfNotPresent, &[]).await.unwrap();
    let moved = registry.put_image("a", "t", &[tar_of(&[("x", b"new")])]);
    let still = images.ensure(&reference, PullPolicy::IfNotPresent, &[]).await.unwrap();
    assert_eq!(file(&still, "x").as_deref(), Some("old"));
    let now = images.ensure(&reference, PullPolicy::Always, &[]).await.unwrap();
    assert_eq!((file(&now, "x").as_deref(), &now.digest), (Some("new"), &moved));
}

#[tokio::test]
async fn a_download_that_breaks_off_is_continued() {
    let (dir, registry) = (tempfile::tempdir().unwrap(), FakeRegistry::start().await);
    let content = noise(100_000);
    registry.put_image("a", "t", &[tar_of(&[("x", &content)])]);
    registry.state.cut.store(3, Ordering::SeqCst);
    let images = open(dir.path());
    let image = images.ensure(&registry.reference("a:t"), PullPolicy::IfNotPresent, &[]).await.unwrap();
    assert_eq!(std::fs::read(image.layers[0].join("x")).unwrap(), content);
    let continued = |r: &&String| r.contains("bytes=") && !r.contains("bytes=0-");
    assert!(registry.state.requests.lock().unwrap().iter().filter(continued).count() >= 1);
}

#[tokio::test]
async fn a_download_that_never_ends_well_leaves_nothing_installed() {
    let (dir, registry) = (tempfile::tempdir().unwrap(), FakeRegistry::start().await);
    registry.put_image("a", "t", &[tar_of(&[("x", &noise(100_000))])]);
    registry.state.cut.store(usize::MAX, Ordering::SeqCst);
    let images = open(dir.path());
    let error = images.ensure(&registry.reference("a:t"), PullPolicy::IfNotPresent, &[]).await.unwrap_err();
    assert_eq!(error.reason(), "ErrImagePull", "{error}");
    assert_eq!(images.list().await.unwrap(), []);
    assert!(!dir.path().join("layers").exists());
}

#[tokio::test]
async fn wrong_content_is_refused() {
    let (dir, registry) = (tempfile::tempdir().unwrap(), FakeRegistry::start().await);
    registry.put_image("a", "t", &[tar_of(&[("x", &noise(1000))])]);
    for (path, (_, bytes)) in registry.state.answers.lock().unwrap().iter_mut() {
        if path.contains("/blobs/") && bytes.len() > 500 {
            bytes[100] ^= 1;
        }
    }
    let images = open(dir.path());
    let error = images.ensure(&registry.reference("a:t"), PullPolicy::IfNotPresent, &[]).await.unwrap_err();
    assert_eq!(error.reason(), "ErrImagePull");
    assert!(error.to_string().contains("is not what its digest says"), "{error}");
    assert_eq!((images.list().await.unwrap(), leftovers(dir.path())), (vec![], vec![]));
}

#[tokio::test]
async fn credentials_are_tried_and_refusals_explained() {
    let (dir, registry) = (tempfile::tempdir().unwrap(), FakeRegistry::start().await);
    let digest = registry.put_image("me/app", "t", &[tar_of(&[("x", b"1")])]);
    *registry.state.login.lock().unwrap() = Some("me:secret".to_owned());
    let images = open(dir.path());
    let reference = registry.reference("me/app:t");
    let with = |password: &str| Credentials {
        registry: registry.host.clone(),
        username: "me".into(),
        password: password.into(),
    };
    let nobody = images.ensure(&reference, PullPolicy::Always, &[]).await.unwrap_err();
    assert!(nobody.to_string().contains("401 Unauthorized"), "{nobody}");
    let wrong = images.ensure(&reference, PullPolicy::Always, &[with("guess")]).await.unwrap_err();
    assert!(wrong.to_string().contains("refused the credentials: who are you?"), "{wrong}");
    let unresolved = images.resolve(&reference, &[]).await.unwrap_err().to_string();
    let want = format!(
        "failed to resolve image to digest: HEAD http://{}/v2/me/app/manifests/t: unexpected status code 401 \
         Unauthorized (HEAD responses have no body, use GET for details)",
        registry.host
    );
    assert_eq!(unresolved, want);
    assert_eq!(images.resolve(&reference, &[with("secret")]).await.unwrap(), digest);
    images.ensure(&reference, PullPolicy::Always, &[with("guess"), with("secret")]).await.unwrap();
}

#[tokio::test]
async fn what_is_not_there_is_said_in_the_registrys_words() {
    let (dir, registry) = (tempfile::tempdir().unwrap(), FakeRegistry::start().await);
    let images = open(dir.path());
    let reference = registry.reference("no/such:tag");
    assert_eq!(
        images.resolve(&reference, &[]).await.unwrap_err().to_string(),
        format!(
            "failed to resolve image to digest: HEAD http://{}/v2/no/such/manifests/tag: unexpected status code 404 Not \
             Found (HEAD responses have no body, use GET for details)",
            registry.host
        )
    );
    let error = images.ensure(&reference, PullPolicy::IfNotPresent, &[]).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "failed to pull image {reference:?}: GET http://{}/v2/no/such/manifests/tag: unexpected status code 404 Not \
             Found: MANIFEST_UNKNOWN: manifest unknown",
            registry.host
        )
    );
    let never = images.ensure(&reference, PullPolicy::Never, &[]).await.unwrap_err();
    assert_eq!(never.reason(), "ErrImageNeverPull");
    let name = images.ensure("No Such", PullPolicy::Never, &[]).await.unwrap_err();
    assert_eq!(name.reason(), "InvalidImageName");
    let away = images.ensure("127.0.0.1:1/x", PullPolicy::Always, &[]).await.unwrap_err();
    assert!(away.to_string().contains("onnection refused"), "{away}");
}

#[tokio::test]
async fn a_mirror_is_asked_first_and_the_registry_when_it_fails() {
    let dir = tempfile::tempdir().unwrap();
    let (mirror, origin) = (FakeRegistry::start().await, FakeRegistry::start().await);
    let digest = origin.put_image("a", "t", &[tar_of(&[("x", b"1")])]);
    mirror.put_image("hub/b", "t", &[tar_of(&[("x", b"1")])]);
    let mirrors = BTreeMap::from([(origin.host.clone(), vec![format!("http://{}/hub", mirror.host)])]);
    let images = Images::open(dir.path(), Config { mirrors, ..Config::default() }).unwrap();
    images.ensure(&origin.reference("b:t"), PullPolicy::Always, &[]).await.unwrap();
    assert_eq!(origin.requests(""), 0);
    assert_eq!(images.ensure(&origin.reference("a:t"), PullPolicy::Always, &[]).await.unwrap().digest, digest);
    assert_eq!(mirror.requests("/v2/hub/a/manifests/t"), 1);
}

#[tokio::test]
async fn a_mirror_gets_no_password_but_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let (mirror, origin) = (FakeRegistry::start().await, FakeRegistry::start().await);
    for (registry, repository) in [(&mirror, "hub/a"), (&origin, "a")] {
        registry.put_image(repository, "t", &[tar_of(&[("x", b"1")])]);
        *registry.state.login.lock().unwrap() = Some("me:secret".to_owned());
    }
    let mirrors = BTreeMap::from([(origin.host.clone(), vec![format!("http://{}/hub", mirror.host)])]);
    let images = Images::open(dir.path(), Config { mirrors, ..Config::default() }).unwrap();
    let for_host =
        |host: &str| Credentials { registry: host.to_owned(), username: "me".into(), password: "secret".into() };
    let logins = |registry: &FakeRegistry| registry.state.logins.load(Ordering::SeqCst) > 0;
    images.resolve(&origin.reference("a:t"), &[for_host(&origin.host)]).await.unwrap();
    assert_eq!((logins(&mirror), logins(&origin)), (false, true), "the mirror was asked as nobody");
    images.resolve(&origin.reference("a:t"), &[for_host(&format!("{}/hub", mirror.host))]).await.unwrap();
    assert!(logins(&mirror));
}

#[tokio::test]
async fn a_layer_that_occurs_twice_is_mounted_once() {
    let (dir, registry) = (tempfile::tempdir().unwrap(), FakeRegistry::start().await);
    let (empty, below, above) = (tar_of(&[]), tar_of(&[("x", b"1")]), tar_of(&[("x", b"2")]));
    registry.put_image("a", "t", &[above.clone(), below, empty.clone(), above, empty]);
    let images = open(dir.path());
    let image = images.ensure(&registry.reference("a:t"), PullPolicy::IfNotPresent, &[]).await.unwrap();
    let distinct: BTreeSet<_> = image.layers.iter().collect();
    assert_eq!((image.layers.len(), distinct.len()), (3, 3), "overlayfs refuses a directory that it has already");
    assert_eq!(file(&image, "x").as_deref(), Some("2"), "the upper one counts");
}

/// A tar with a directory of this mode in it.
fn tar_with_directory(path: &str, mode: u32) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Directory);
    header.set_size(0);
    header.set_mode(mode);
    tar.append_data(&mut header, path, std::io::empty()).unwrap();
    tar.into_inner().unwrap()
}

#[tokio::test]
async fn what_a_layer_does_not_describe_is_not_taken_from_another_image() {
    use std::os::unix::fs::PermissionsExt;
    let (dir, registry) = (tempfile::tempdir().unwrap(), FakeRegistry::start().await);
    let shared = tar_of(&[("etc/app.conf", b"1")]);
    registry.put_image("open", "t", &[tar_with_directory("etc", 0o777), shared.clone()]);
    registry.put_image("closed", "t", &[tar_with_directory("etc", 0o750), shared]);
    let images = open(dir.path());
    let look = async |images: &Images, name: &str| {
        let image = images.ensure(&registry.reference(name), PullPolicy::IfNotPresent, &[]).await.unwrap();
        let top = image.layers.last().unwrap().join("etc");
        assert_eq!(file(&image, "etc/app.conf").as_deref(), Some("1"));
        std::fs::metadata(top).unwrap().permissions().mode() & 0o7777
    };
    for name in ["open:t", "closed:t", "open:t"] {
        let want = if name == "open:t" { 0o777 } else { 0o750 };
        assert_eq!(look(&images, name).await, want, "{name}");
    }
    // Both stay through a collection, and are found again.
    let blobs = registry.requests("/blobs/");
    let used = images.collect(&BTreeSet::new(), Duration::from_secs(3600)).await.unwrap();
    assert_eq!(used.layers, 0);
    assert_eq!(look(&open(dir.path()), "closed:t").await, 0o750);
    assert_eq!(registry.requests("/blobs/"), blobs);
}

#[tokio::test]
async fn damaged_content_is_fetched_anew() {
    let (dir, registry) = (tempfile::tempdir().unwrap(), FakeRegistry::start().await);
    registry.put_image("a", "t", &[tar_of(&[("x", &noise(1000))])]);
    let reference = registry.reference("a:t");
    open(dir.path()).ensure(&reference, PullPolicy::IfNotPresent, &[]).await.unwrap();
    // As a power cut leaves it: nothing unpacked, and each file as long as it should be.
    std::fs::remove_dir_all(dir.path().join("layers")).unwrap();
    for blob in std::fs::read_dir(dir.path().join("blobs/sha256")).unwrap() {
        let path = blob.unwrap().path();
        let mut bytes = std::fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&path, bytes).unwrap();
    }
    let image = open(dir.path()).ensure(&reference, PullPolicy::IfNotPresent, &[]).await.unwrap();
    assert_eq!(std::fs::read(image.layers[0].join("x")).unwrap(), noise(1000));
}

#[tokio::test]
async fn what_runs_stays_when_its_name_is_taken_away() {
    let (dir, registry) = (tempfile::tempdir().unwrap(), FakeRegistry::start().await);
    registry.put_image("a", "t", &[tar_of(&[("x", b"1")])]);
    let images = open(dir.path());
    let pulled = images.ensure(&registry.reference("a:t"), PullPolicy::IfNotPresent, &[]).await.unwrap();
    images.import_files("localhost:5000/mine", &[("x", 0o644, b"2")], ImageConfig::default()).await.unwrap();
    let mine = images.ensure("localhost:5000/mine", PullPolicy::Never, &[]).await.unwrap();
    let running = BTreeSet::from([pulled.digest.clone(), mine.digest.clone()]);
    images.remove(&registry.reference("a:t"), &BTreeSet::new()).await.unwrap();
    assert!(images.delete_manifest("mine", &mine.digest).await.unwrap());
    assert_eq!(images.list().await.unwrap(), []);
    let long_ago = SystemTimeAgo::hours(2);
    for blob in std::fs::read_dir(dir.path().join("blobs/sha256")).unwrap() {
        std::fs::File::open(blob.unwrap().path()).unwrap().set_modified(long_ago).unwrap();
    }
    assert_eq!(images.collect(&running, Duration::ZERO).await.unwrap().layers, 0);
    assert_eq!((file(&pulled, "x"), file(&mine, "x")), (Some("1".into()), Some("2".into())));
    // And go when nobody runs them any more.
    assert_eq!(images.collect(&BTreeSet::new(), Duration::ZERO).await.unwrap().layers, 2);
}

#[tokio::test]
async fn the_local_registry_answers_under_each_of_its_names_without_network() {
    let dir = tempfile::tempdir().unwrap();
    let images = open(dir.path());
    let digest = images.import_files("localhost:5000/x", &[("a", 0o644, b"1")], ImageConfig::default()).await.unwrap();
    for host in ["registry.example:5000", "localhost:5000", "127.0.0.1:5000"] {
        let reference = format!("{host}/x:latest");
        assert_eq!(images.resolve(&reference, &[]).await.unwrap(), digest);
        let image = images.ensure(&reference, PullPolicy::Always, &[]).await.unwrap();
        assert_eq!(image.id, format!("{host}/x@{digest}"));
    }
    assert_eq!(images.repositories(), ["x"]);
    assert_eq!(
        images.resolve("localhost:5000/y:z", &[]).await.unwrap_err().to_string(),
        "failed to resolve image to digest: HEAD http://localhost:5000/v2/y/manifests/z: unexpected status code 404 Not \
         Found (HEAD responses have no body, use GET for details)"
    );
    // Another port tomorrow finds the same images.
    images.set_local_registries(&["127.0.0.1:6000".to_owned()]);
    assert_eq!(images.resolve("localhost:6000/x", &[]).await.unwrap(), digest);
}

#[tokio::test]
async fn archives_of_both_kinds_are_loaded() {
    let dir = tempfile::tempdir().unwrap();
    let images = open(dir.path());
    let layer = tar_of(&[("x", b"1")]);
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "config": {"Cmd": ["/x"]},
        "rootfs": {"type": "layers", "diff_ids": [digest::digest_of(&layer)]},
    })
    .to_string();
    let saved =
        serde_json::json!([{"Config": "c.json", "RepoTags": ["app:1", "ghcr.io/me/app:2"], "Layers": ["l/layer.tar"]}]);
    let docker = tar_of(&[
        ("l/layer.tar", &layer),
        ("c.json", config.as_bytes()),
        ("manifest.json", saved.to_string().as_bytes()),
    ]);
    let loaded = images.load(std::io::Cursor::new(docker), None).await.unwrap();
    let names: Vec<&str> = loaded.iter().map(|l| l.name.as_str()).collect();
    assert_eq!(names, ["docker.io/library/app:1", "ghcr.io/me/app:2"]);
    let image = images.ensure("app:1", PullPolicy::Always, &[]).await.unwrap();
    assert_eq!((file(&image, "x").as_deref(), image.config.cmd.len()), (Some("1"), 1));

    let found = images.inner.store.find("docker.io/library/app", "1").unwrap();
    let bytes = images.inner.store.read_blob("m", &found.digest, MANIFEST_MAX).unwrap();
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [{
        "mediaType": manifest::OCI_MANIFEST, "digest": found.digest, "size": bytes.len(),
        "annotations": {"org.opencontainers.image.ref.name": "renamed:3"},
    }]});
    let blob = |bytes: &[u8]| format!("blobs/sha256/{}", digest::hex_of(&digest::digest_of(bytes)));
    let layout = tar_of(&[
        ("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#),
        ("index.json", index.to_string().as_bytes()),
        (&blob(&bytes), &bytes),
        (&blob(config.as_bytes()), config.as_bytes()),
        (&blob(&layer), &layer),
    ]);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut gzip, &layout).unwrap();
    let fresh = tempfile::tempdir().unwrap();
    let images = open(fresh.path());
    let gzipped = std::io::Cursor::new(gzip.finish().unwrap());
    let loaded = images.load(gzipped, None).await.unwrap();
    assert_eq!(loaded, [Loaded { name: "docker.io/library/renamed:3".into(), digest: found.digest.clone() }]);
    images.ensure("renamed:3", PullPolicy::Never, &[]).await.unwrap();
    let loaded = images.load(std::io::Cursor::new(layout), Some("given:4".into())).await.unwrap();
    assert_eq!(loaded[0].name, "docker.io/library/given:4");
    let nothing = images.load(std::io::Cursor::new(tar_of(&[("x", b"1")])), None).await.unwrap_err();
    assert_eq!(
        nothing.to_string(),
        "the archive is broken: it has neither manifest.json (docker save) nor index.json (OCI layout)"
    );
}

#[tokio::test]
async fn collection_takes_what_nobody_runs_and_spares_what_was_given() {
    let (dir, registry) = (tempfile::tempdir().unwrap(), FakeRegistry::start().await);
    let kept = registry.put_image("kept", "t", &[tar_of(&[("x", b"1")])]);
    registry.put_image("gone", "t", &[tar_of(&[("x", b"2")])]);
    let images = open(dir.path());
    images.import_files("mine", &[("a", 0o644, b"1")], ImageConfig::default()).await.unwrap();
    for name in ["kept:t", "gone:t"] {
        images.ensure(&registry.reference(name), PullPolicy::IfNotPresent, &[]).await.unwrap();
    }
    images.ensure("mine", PullPolicy::Never, &[]).await.unwrap();
    let long_ago = SystemTimeAgo::hours(2);
    for blob in std::fs::read_dir(dir.path().join("blobs/sha256")).unwrap() {
        std::fs::File::open(blob.unwrap().path()).unwrap().set_modified(long_ago).unwrap();
    }
    let keep = BTreeSet::from([kept.clone()]);
    assert_eq!(images.collect(&keep, Duration::from_secs(3600)).await.unwrap().names, 0);
    let collected = images.collect(&keep, Duration::ZERO).await.unwrap();
    assert_eq!((collected.names, collected.layers), (1, 1));
    // The unpacked layer of the kept image needs its blob no more.
    let names: Vec<String> = images.list().await.unwrap().into_iter().map(|i| i.repository).collect();
    assert_eq!(names, [format!("{}/kept", registry.host), "docker.io/library/mine".to_owned()]);
    let image = images.ensure(&registry.reference("kept:t"), PullPolicy::Never, &[]).await.unwrap();
    assert_eq!(file(&image, "x").as_deref(), Some("1"));
    let reopened = open(dir.path());
    reopened.ensure(&registry.reference("kept:t"), PullPolicy::Never, &[]).await.unwrap();
    // Gone means pulled again.
    images.ensure(&registry.reference("gone:t"), PullPolicy::IfNotPresent, &[]).await.unwrap();
    assert_eq!(registry.requests("GET /v2/gone/manifests/t"), 2);
}

struct SystemTimeAgo;

impl SystemTimeAgo {
    #[expect(clippy::disallowed_methods, reason = "ages of files are told by the system's clock")]
    fn hours(n: u64) -> std::time::SystemTime {
        std::time::SystemTime::now() - Duration::from_secs(n * 3600)
    }
}

#[tokio::test]
async fn names_are_removed_one_by_one_unless_they_run() {
    let dir = tempfile::tempdir().unwrap();
    let images = open(dir.path());
    let digest = images.import_files("x:1", &[("a", 0o644, b"1")], ImageConfig::default()).await.unwrap();
    images.import_files("x:2", &[("a", 0o644, b"1")], ImageConfig::default()).await.unwrap();
    let used = BTreeSet::from([digest]);
    assert_eq!(images.remove("x:1", &used).await.unwrap_err().to_string(), "image x:1 is used by a pod");
    images.remove("x:1", &BTreeSet::new()).await.unwrap();
    assert_eq!(images.list().await.unwrap().len(), 1);
    assert_eq!(images.remove("x:1", &BTreeSet::new()).await.unwrap_err().to_string(), "image x:1 is not here");
    images.remove("x:2", &BTreeSet::new()).await.unwrap();
    assert_eq!(images.list().await.unwrap(), []);
}

#[tokio::test]
async fn merged_layouts_and_merged_copies_hold_the_same() {
    let registry = FakeRegistry::start().await;
    registry.put_image(
        "a",
        "t",
        &[tar_of(&[("d/x", b"1"), ("d/y", b"2"), ("z", b"3")]), tar_of(&[("d/.wh.x", b""), ("z", b"4")])],
    );
    for layout in [Layout::Merged, Layout::UserOverlay, Layout::Overlay] {
        if layout == Layout::Overlay && !nix::unistd::geteuid().is_root() {
            println!("skipped: trusted.overlay attributes need root");
            continue;
        }
        let dir = tempfile::tempdir().unwrap();
        let images = Images::open(dir.path(), Config { layout, ..Config::default() }).unwrap();
        let image = images.ensure(&registry.reference("a:t"), PullPolicy::IfNotPresent, &[]).await.unwrap();
        assert_eq!(image.layers.len(), if layout == Layout::Merged { 1 } else { 2 });
        let target = dir.path().join("copy");
        images.unpack_merged(&image, &target).await.unwrap();
        let read = |name: &str| std::fs::read_to_string(target.join(name)).ok();
        assert_eq!((read("d/x"), read("d/y"), read("z")), (None, Some("2".into()), Some("4".into())), "{layout:?}");
    }
}

#[tokio::test]
async fn a_full_disk_is_one_clear_error() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: a small file system can only be mounted by root");
        return;
    }
    let registry = FakeRegistry::start().await;
    registry.put_image("a", "t", &[tar_of(&[("x", &noise(3 << 20))])]);
    let dir = tempfile::tempdir().unwrap();
    let flags = nix::mount::MsFlags::empty();
    if nix::mount::mount(Some("tmpfs"), dir.path(), Some("tmpfs"), flags, Some("size=1m")).is_err() {
        println!("skipped: mounting is not allowed here");
        return;
    }
    let images = open(dir.path());
    let error = images.ensure(&registry.reference("a:t"), PullPolicy::IfNotPresent, &[]).await.unwrap_err();
    let left = leftovers(dir.path());
    let names = images.list().await.unwrap();
    drop(images);
    nix::mount::umount2(dir.path(), nix::mount::MntFlags::MNT_DETACH).unwrap();
    assert!(error.to_string().contains("no space left on the disk"), "{error}");
    assert_eq!((error.reason(), left, names), ("ErrImagePull", vec![], vec![]));
}

/// Below a twentieth of the disk pods are ended for the room; a pull must fail before that.
#[tokio::test]
async fn what_would_take_the_room_of_pods_is_not_begun() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: a small file system can only be mounted by root");
        return;
    }
    let registry = FakeRegistry::start().await;
    registry.put_image("a", "t", &[tar_of(&[("x", &noise(37 << 19))])]);
    let dir = tempfile::tempdir().unwrap();
    let flags = nix::mount::MsFlags::empty();
    if nix::mount::mount(Some("tmpfs"), dir.path(), Some("tmpfs"), flags, Some("size=20m")).is_err() {
        println!("skipped: mounting is not allowed here");
        return;
    }
    let images = open(dir.path());
    let error = images.ensure(&registry.reference("a:t"), PullPolicy::IfNotPresent, &[]).await.unwrap_err();
    // An upload does not say how long it will be; the disk is looked at on the way.
    let mut upload = images.begin_blob().await.unwrap();
    let piece = Bytes::from(vec![1; 1 << 20]);
    let mut taken = 0;
    while taken < 20 && upload.write(piece.clone()).await.is_ok() {
        taken += 1;
    }
    drop(upload);
    drop(images);
    nix::mount::umount2(dir.path(), nix::mount::MntFlags::MNT_DETACH).unwrap();
    assert!(error.to_string().contains("no space left on the disk"), "{error}");
    // Only the configuration, which is small, was asked for.
    assert_eq!(registry.requests("/blobs/"), 1);
    assert!((14..=18).contains(&taken), "{taken}");
}

use std::collections::BTreeSet;

#[tokio::test]
async fn a_manifest_without_end_is_refused() {
    let (dir, registry) = (tempfile::tempdir().unwrap(), FakeRegistry::start().await);
    let images = open(dir.path());
    let refused = "the registry's answer makes no sense: its manifest is longer than 4 MiB";
    let error = images.ensure(&registry.reference("endless:t"), PullPolicy::Always, &[]).await.unwrap_err();
    assert!(error.message().contains(refused), "{}", error.message());
    let error = images.resolve(&registry.reference("endless:t"), &[]).await.unwrap_err();
    assert!(error.to_string().contains(refused), "{error}");
}
