//! Garbage collection by owner references: what nobody owns any more goes, and a deletion in the foreground or with
//! orphans is brought to its end. `graph` decides; this file watches the metadata of every kind and acts.

mod graph;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::time::Duration;

use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, Preconditions, PropagationPolicy};
use kube::core::PartialObjectMeta;
use kube::discovery::{Discovery, Scope, verbs};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::feed::{Change, changes, gather};
use graph::{Act, Graph, Node};

/// Before an act that failed is tried again.
const RETRY: Duration = Duration::from_millis(500);

enum Event {
    Object(ApiResource, Change<PartialObjectMeta<DynamicObject>>),
    /// A kind came, or one went.
    Kinds,
}

/// Runs until `shutdown`.
pub async fn run(client: Client, shutdown: CancellationToken) {
    let mut graph = Graph::default();
    let mut known = Kinds::new();
    // Whose owner is of a kind that is not served: nobody can say that it is gone.
    let mut undecided: Vec<Node> = Vec::new();
    let mut events = futures::stream::SelectAll::<BoxStream<'static, Event>>::new();
    events.push(
        changes::<CustomResourceDefinition>(Api::all(client.clone()), watcher::Config::default())
            .map(|_| Event::Kinds)
            .boxed(),
    );
    let mut failed = false;
    let mut kinds_due = false;
    loop {
        let retry = failed.then_some(RETRY);
        let event = tokio::select! {
            () = shutdown.cancelled() => return,
            event = events.next() => event,
            () = wait(retry) => None,
        };
        let mut batch = event.into_iter().collect::<Vec<_>>();
        while let Some(Some(more)) = events.next().now_or_never() {
            batch.push(more);
        }
        if std::mem::take(&mut kinds_due) {
            batch.push(Event::Kinds);
        }
        for event in batch {
            match event {
                Event::Object(resource, change) => take(&mut graph, &resource, change),
                Event::Kinds => match follow_new(&client, &mut known).await {
                    Ok(new) => {
                        if !new.is_empty() {
                            undecided.drain(..).for_each(|node| graph.look_again(&node));
                        }
                        for resource in new {
                            graph.expect(&resource.plural, &resource.group);
                            events.push(follow(&client, resource));
                        }
                    }
                    Err(error) => {
                        tracing::warn!(%error, "the kinds could not be listed; trying again");
                        kinds_due = true;
                    }
                },
            }
        }
        failed = kinds_due;
        for act in graph.due() {
            let Some(Kind { resource, .. }) = known.get(&act.node().kind) else { continue };
            let done = match confirm(&client, &known, &act).await {
                Ok(Confirmed::Gone) => carry_out(&client, resource, &act, graph.version(act.node())).await,
                Ok(Confirmed::There) => {
                    // Its watch is behind; what to do is decided when it has caught up.
                    graph.look_again(act.node());
                    failed = true;
                    Ok(())
                }
                Ok(Confirmed::Unknown) => {
                    undecided.push(act.node().clone());
                    Ok(())
                }
                Err(error) => Err(error),
            };
            if let Err(error) = done {
                tracing::warn!(object = %act.node().name, kind = %act.node().kind, %error, "an object could not be collected");
                // Not the act is tried again, which may be wrong by then: the object is looked at again.
                graph.look_again(act.node());
                failed = true;
            }
        }
    }
}

async fn wait(time: Option<Duration>) {
    match time {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
    }
}

/// What is followed, by [`graph::kind_key`].
type Kinds = BTreeMap<String, Kind>;

struct Kind {
    resource: ApiResource,
    scope: Scope,
}

/// What the API says of owners that the watches have not shown.
#[derive(Debug, PartialEq)]
enum Confirmed {
    Gone,
    /// One of them is there after all.
    There,
    /// One of them is of a kind that is not served.
    Unknown,
}

/// The watches of two kinds are not in step: an owner may be new, and not gone. Nothing is deleted before the API itself
/// was asked.
async fn confirm(client: &Client, known: &Kinds, act: &Act) -> kube::Result<Confirmed> {
    for owner in act.missing() {
        let group = owner.api_version.split_once('/').map_or("", |(group, _)| group);
        let same = |kind: &&Kind| kind.resource.kind == owner.kind && kind.resource.group == group;
        let Some(Kind { resource, scope }) = known.values().find(same) else { return Ok(Confirmed::Unknown) };
        let api: Api<DynamicObject> = match (scope, &act.node().namespace) {
            (Scope::Namespaced, Some(namespace)) => Api::namespaced_with(client.clone(), namespace, resource),
            // What belongs to no namespace cannot be owned by something in one.
            (Scope::Namespaced, None) => continue,
            (Scope::Cluster, _) => Api::all_with(client.clone(), resource),
        };
        let found = api.get_metadata_opt(&owner.name).await?;
        if found.is_some_and(|found| found.metadata.uid.as_ref() == Some(&owner.uid)) {
            return Ok(Confirmed::There);
        }
    }
    Ok(Confirmed::Gone)
}

/// Kinds that are served and not followed yet.
async fn follow_new(client: &Client, known: &mut Kinds) -> kube::Result<Vec<ApiResource>> {
    let discovery = Discovery::new(client.clone()).run().await?;
    let mut new = Vec::new();
    for group in discovery.groups() {
        // Not the recommended resources: those leave out kinds that the group's first version does not have.
        for (resource, capabilities) in group.resources_by_stability() {
            let watched =
                capabilities.supports_operation(verbs::WATCH) && capabilities.supports_operation(verbs::DELETE);
            // Events own nothing and are many; they go by age.
            if !watched || resource.plural == "events" {
                continue;
            }
            let key = graph::kind_key(&resource.plural, &resource.group);
            if let Entry::Vacant(place) = known.entry(key) {
                place.insert(Kind { resource: resource.clone(), scope: capabilities.scope.clone() });
                new.push(resource);
            }
        }
    }
    Ok(new)
}

fn follow(client: &Client, resource: ApiResource) -> BoxStream<'static, Event> {
    let api: Api<PartialObjectMeta<DynamicObject>> = Api::all_with(client.clone(), &resource);
    let events = watcher(api, watcher::Config::default()).default_backoff();
    gather(events, resource.plural.clone()).map(move |change| Event::Object(resource.clone(), change)).boxed()
}

fn take(graph: &mut Graph, resource: &ApiResource, change: Change<PartialObjectMeta<DynamicObject>>) {
    let kind = graph::kind_key(&resource.plural, &resource.group);
    let node = |object: &PartialObjectMeta<DynamicObject>| Node {
        kind: kind.clone(),
        namespace: object.namespace(),
        name: object.name_any(),
        uid: object.uid().unwrap_or_default(),
    };
    match change {
        Change::Apply(object) => graph.apply(node(&object), object.metadata),
        Change::Delete(object) => graph.delete(&node(&object)),
        Change::Reset(all) => {
            graph.reset(&kind, all.into_iter().map(|object| (node(&object), object.metadata)).collect());
        }
    }
}

/// `version`: of the object, as the act was decided from it. Where it has changed since, nothing is done: its watch will show
/// the change, and what is due is decided anew. (A list of finalizers or owners is written whole, and an old one would bring
/// back what others have taken out.)
async fn carry_out(client: &Client, resource: &ApiResource, act: &Act, version: Option<&str>) -> kube::Result<()> {
    let node = act.node();
    let api: Api<DynamicObject> = match &node.namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, resource),
        None => Api::all_with(client.clone(), resource),
    };
    let result = match act {
        Act::Delete { foreground, .. } => {
            let policy = if *foreground { PropagationPolicy::Foreground } else { PropagationPolicy::Background };
            let only_this = Preconditions { uid: Some(node.uid.clone()), resource_version: version.map(str::to_owned) };
            let how =
                DeleteParams { propagation_policy: Some(policy), preconditions: Some(only_this), ..Default::default() };
            api.delete(&node.name, &how).await.map(drop)
        }
        Act::Finalizers { left, .. } => {
            let patch = json!({"metadata": {"uid": node.uid, "resourceVersion": version, "finalizers": left}});
            api.patch(&node.name, &PatchParams::default(), &Patch::Merge(patch)).await.map(drop)
        }
        Act::Owners { left, .. } => {
            let patch = json!({"metadata": {"uid": node.uid, "resourceVersion": version, "ownerReferences": left}});
            api.patch(&node.name, &PatchParams::default(), &Patch::Merge(patch)).await.map(drop)
        }
    };
    match result {
        Ok(()) => Ok(()),
        // Gone, changed, or another object of the same name.
        Err(kube::Error::Api(status)) if [404, 409].contains(&status.code) => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::api::PostParams;
    use neap_testkit::{Api as TestApi, eventually};

    /// DomainMapping exists only in another version than the one its group recommends.
    #[tokio::test(start_paused = true)]
    async fn owners_that_were_not_seen_are_asked_for() {
        let api = TestApi::start().await;
        let client = api.client();
        let mut known = Kinds::new();
        follow_new(&client, &mut known).await.unwrap();
        let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
        let map: ConfigMap = serde_json::from_value(json!({"metadata": {"name": "owner"}})).unwrap();
        let uid = maps.create(&PostParams::default(), &map).await.unwrap().metadata.uid.unwrap();
        let check = async |kind: &str, name: &str, uid: &str, want: Confirmed| {
            let owner = json!({"apiVersion": "v1", "kind": kind, "name": name, "uid": uid});
            let node = Node {
                kind: "configmaps".into(),
                namespace: Some("default".into()),
                name: "dependent".into(),
                uid: "u".into(),
            };
            let missing = vec![serde_json::from_value(owner).unwrap()];
            let act = Act::Delete { node, foreground: false, missing };
            assert_eq!(confirm(&client, &known, &act).await.unwrap(), want, "{kind} {name} {uid}");
        };
        check("ConfigMap", "owner", &uid, Confirmed::There).await;
        check("ConfigMap", "owner", "an earlier one", Confirmed::Gone).await;
        check("ConfigMap", "nobody", &uid, Confirmed::Gone).await;
        check("Restored", "owner", &uid, Confirmed::Unknown).await;
    }

    /// Others take their finalizers out meanwhile; what was decided before must not bring them back, or end what has changed.
    #[tokio::test(start_paused = true)]
    async fn what_has_changed_since_is_left_alone() {
        let api = TestApi::start().await;
        let client = api.client();
        let mut known = Kinds::new();
        follow_new(&client, &mut known).await.unwrap();
        let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
        let both = json!({"metadata": {"name": "m", "finalizers": ["a.test/mine", "a.test/other"]}});
        let map = maps.create(&PostParams::default(), &serde_json::from_value(both).unwrap()).await.unwrap();
        let node = Node {
            kind: "configmaps".into(),
            namespace: Some("default".into()),
            name: "m".into(),
            uid: map.metadata.uid.unwrap(),
        };
        let before = map.metadata.resource_version.unwrap();
        let taken = json!({"metadata": {"finalizers": ["a.test/mine"]}});
        let map = maps.patch("m", &PatchParams::default(), &Patch::Merge(taken)).await.unwrap();
        let after = map.metadata.resource_version.unwrap();
        let acts = [
            Act::Finalizers { node: node.clone(), left: vec!["a.test/other".into()] },
            Act::Delete { node, foreground: false, missing: Vec::new() },
        ];
        let resource = &known["configmaps"].resource;
        for act in &acts {
            carry_out(&client, resource, act, Some(&before)).await.unwrap();
            assert_eq!(maps.get("m").await.unwrap().metadata.resource_version.as_ref(), Some(&after));
        }
        carry_out(&client, resource, &acts[1], Some(&after)).await.unwrap();
        assert!(maps.get("m").await.unwrap().metadata.deletion_timestamp.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn owners_count_whatever_version_their_kind_has() {
        let api = TestApi::start().await;
        let client = api.client();
        let mut tasks = tokio::task::JoinSet::new();
        let shutdown = CancellationToken::new();
        tasks.spawn(run(client.clone(), shutdown.clone()));
        let kind = ApiResource {
            group: "serving.knative.dev".into(),
            version: "v1beta1".into(),
            api_version: "serving.knative.dev/v1beta1".into(),
            kind: "DomainMapping".into(),
            plural: "domainmappings".into(),
        };
        let mappings: Api<DynamicObject> = Api::namespaced_with(client.clone(), "default", &kind);
        let mapping = json!({"apiVersion": kind.api_version, "kind": kind.kind, "metadata": {"name": "a.example.test"},
            "spec": {"ref": {"apiVersion": "serving.knative.dev/v1", "kind": "Service", "name": "s"}}});
        let mapping: DynamicObject = serde_json::from_value(mapping).unwrap();
        let mapping = mappings.create(&PostParams::default(), &mapping).await.unwrap();
        let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
        let owned = |name: &str, uid: &str| -> ConfigMap {
            let owner = json!({"apiVersion": "serving.knative.dev/v1beta1", "kind": "DomainMapping", "name": "a.example.test", "uid": uid});
            serde_json::from_value(json!({"metadata": {"name": name, "ownerReferences": [owner]}})).unwrap()
        };
        let uid = mapping.metadata.uid.unwrap();
        maps.create(&PostParams::default(), &owned("kept", &uid)).await.unwrap();
        maps.create(&PostParams::default(), &owned("orphan", "nobody")).await.unwrap();
        let gone = |name: &'static str| {
            let maps = maps.clone();
            async move { maps.get_opt(name).await.unwrap().is_none().then_some(()) }
        };
        eventually("what nobody owns goes", || gone("orphan")).await;
        assert!(maps.get_opt("kept").await.unwrap().is_some(), "its owner is there");
        mappings.delete("a.example.test", &DeleteParams::default()).await.unwrap();
        eventually("it goes with its owner", || gone("kept")).await;
        shutdown.cancel();
    }
}
