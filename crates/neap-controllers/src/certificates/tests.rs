//! What is kept in Secrets is found again, and what the local authority issues is what it says.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::PostParams;
use neap_api::acme::{Answers, Http01Answer};
use neap_api::keys::neap;
use neap_logic::certificates::Fault;
use neap_logic::plan::certificate::{CHAIN, KEY};
use neap_testkit::Api;

use super::record::{Record, certificate_of};
use super::{Authority, held};
use crate::index::Key;

#[tokio::test(start_paused = true)]
async fn the_local_authority_is_made_once_and_replaced_in_time() {
    let api = Api::start().await;
    let client = api.client();
    let now = api.now();
    let first = Authority::ensure(&client, now).await.expect("is made");
    let again = Authority::ensure(&client, now).await.expect("is read");
    assert_eq!((first.pem(), first.mark()), (again.pem(), again.mark()));
    let maps = kube::Api::<ConfigMap>::namespaced(client.clone(), "knative-serving");
    let shown = maps.get(neap::LOCAL_AUTHORITY).await.expect("is shown");
    assert_eq!(shown.data.expect("data")["ca.crt"], first.pem());

    let later = now + SignedDuration::from_hours(24 * 365 * 9 + 48);
    let next = Authority::ensure(&client, later).await.expect("is replaced");
    assert_ne!(first.mark(), next.mark());
    assert_eq!(maps.get(neap::LOCAL_AUTHORITY).await.expect("is shown").data.expect("data")["ca.crt"], next.pem());
}

#[tokio::test(start_paused = true)]
async fn what_is_issued_is_read_again() {
    let api = Api::start().await;
    let authority = Authority::ensure(&api.client(), api.now()).await.expect("is made");
    let names = ["a.ns.localhost".to_owned(), "*.b.localhost".to_owned()];
    let issued = authority.issue(&names, api.now()).expect("issues");
    let secret = |chain: &str, key: &str| Secret {
        metadata: serde_json::from_value(serde_json::json!({"annotations": {"neap.dev/issuer": issued.issuer}}))
            .expect("metadata"),
        data: Some([(CHAIN.to_owned(), ByteString(chain.into())), (KEY.to_owned(), ByteString(key.into()))].into()),
        ..Secret::default()
    };
    let read = held(&secret(&issued.chain, &issued.key)).expect("is one");
    assert_eq!((read.life, &read.names[..], &read.issuer), (issued.life, &names[..], &issued.issuer));
    let other = authority.issue(&names, api.now()).expect("issues");
    assert_eq!(held(&secret(&issued.chain, &other.key)), None, "the key is another's");
    assert_eq!(held(&secret("nonsense", &issued.key)), None);
}

#[tokio::test(start_paused = true)]
async fn an_order_is_found_again() {
    let api = Api::start().await;
    let client = api.client();
    assert_eq!(Record::load(&client, "uid").await.expect("is asked"), None);
    let mut record = Record {
        directory: "https://ca.example/dir".into(),
        names: vec!["a.example.org".into()],
        settings: "sum".into(),
        url: Some("https://ca.example/order/1".into()),
        presented: Timestamp::from_second(5).ok(),
        failures: 3,
        refusals: 1,
        fault: Some(Fault::unreachable("ca.example", "gone")),
        again_at: Timestamp::from_second(9).ok(),
        key: Some("key".into()),
        answers: Answers {
            namespace: "ns".into(),
            http01: vec![Http01Answer { host: "a".into(), token: "t".into(), key_authorization: "t.x".into() }],
            tls_alpn01: Vec::new(),
        },
    };
    let of = Key::new("ns", "c");
    record.save(&client, &of, "uid").await.expect("is written");
    assert_eq!(Record::load(&client, "uid").await.expect("is read").as_ref(), Some(&record));
    let secrets = kube::Api::<Secret>::namespaced(client.clone(), "knative-serving");
    let secret = secrets.get("acme-uid").await.expect("is there");
    assert_eq!(certificate_of(&secret.metadata), Some(of.clone()));
    // Given up, nothing is answered and no key is kept.
    record.give_up();
    record.save(&client, &of, "uid").await.expect("is written");
    let read = Record::load(&client, "uid").await.expect("is read").expect("is there");
    assert_eq!((read.key, read.url, read.answers, read.failures), (None, None, Answers::default(), 3));

    let mut strange = secret.clone();
    strange.metadata = serde_json::from_value(serde_json::json!({"name": "acme-other"})).expect("metadata");
    strange.data = None;
    secrets.create(&PostParams::default(), &strange).await.expect("is written");
    assert_eq!(Record::load(&client, "other").await.expect("is asked"), None);
}
