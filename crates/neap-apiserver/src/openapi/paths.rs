//! The operations of a kind: which paths there are, what each does and which parameters it takes. The two
//! document versions write them down differently, so they are listed here as plain values.

use super::KindDoc;

/// One parameter in the query.
pub(super) struct Query {
    pub(super) name: &'static str,
    pub(super) kind: &'static str,
    pub(super) description: &'static str,
}

const fn query(name: &'static str, kind: &'static str, description: &'static str) -> Query {
    Query { name, kind, description }
}

const DRY_RUN: Query = query(
    "dryRun",
    "string",
    "When present, indicates that modifications should not be persisted. An invalid or unrecognized dryRun directive will result in an error response and no further processing of the request. Valid values are: - All: all dry run stages will be processed",
);
const FIELD_MANAGER: Query = query(
    "fieldManager",
    "string",
    "fieldManager is a name associated with the actor or entity that is making these changes. The value must be less than or 128 characters long, and only contain printable characters.",
);
const FIELD_VALIDATION: Query = query(
    "fieldValidation",
    "string",
    "fieldValidation instructs the server on how to handle objects in the request (POST/PUT/PATCH) containing unknown or duplicate fields. Valid values are: Ignore, Warn and Strict.",
);
const FORCE: Query = query(
    "force",
    "boolean",
    "Force is going to \"force\" Apply requests. It means user will re-acquire conflicting fields owned by other people. Force flag must be unset for non-apply patch requests.",
);

/// The parameters of create and update.
pub(super) const WRITE: &[Query] = &[DRY_RUN, FIELD_MANAGER, FIELD_VALIDATION];
/// The parameters of patch.
pub(super) const PATCH: &[Query] = &[DRY_RUN, FIELD_MANAGER, FIELD_VALIDATION, FORCE];
/// The parameters of delete.
pub(super) const DELETE: &[Query] = &[
    DRY_RUN,
    query("gracePeriodSeconds", "integer", "The duration in seconds before the object should be deleted."),
    query(
        "propagationPolicy",
        "string",
        "Whether and how garbage collection will be performed: Orphan, Background or Foreground.",
    ),
];
/// The parameters of list, watch and delete collection.
pub(super) const LIST: &[Query] = &[
    query("allowWatchBookmarks", "boolean", "Requests watch events of type BOOKMARK."),
    query("continue", "string", "The token of the previous page of a chunked list."),
    query("fieldSelector", "string", "Restricts the list of returned objects by their fields."),
    query("labelSelector", "string", "Restricts the list of returned objects by their labels."),
    query("limit", "integer", "The maximum number of responses to return for a list call."),
    query("resourceVersion", "string", "A constraint on what resource versions a request may be served from."),
    query("resourceVersionMatch", "string", "How resourceVersion is applied to list calls."),
    query("sendInitialEvents", "boolean", "Begins a watch with synthetic events for the present state."),
    query("timeoutSeconds", "integer", "Timeout for the list/watch call."),
    query("watch", "boolean", "Watch for changes and return them as a stream of notifications."),
];

/// What an operation takes and returns.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Body {
    None,
    Object,
    Patch,
    DeleteOptions,
}

/// What comes back.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Answer {
    Object,
    List,
    Status,
}

/// One operation on one path.
pub(super) struct Operation {
    /// The key in the path item (`get`).
    pub(super) method: &'static str,
    /// `x-kubernetes-action`.
    pub(super) action: &'static str,
    /// The verb in the operation's id and description.
    pub(super) words: &'static str,
    pub(super) query: &'static [Query],
    pub(super) body: Body,
    pub(super) answer: Answer,
}

/// One path with its operations.
pub(super) struct Path {
    /// `/apis/apps/v1/namespaces/{namespace}/deployments/{name}`.
    pub(super) path: String,
    /// `namespace`, `name`: the parameters in the path, with their meaning.
    pub(super) parameters: Vec<(&'static str, String)>,
    pub(super) operations: Vec<Operation>,
    /// The end of the operation's id (`NamespacedDeploymentStatus`).
    pub(super) id: String,
}

const fn operation(
    method: &'static str,
    action: &'static str,
    words: &'static str,
    query: &'static [Query],
    body: Body,
    answer: Answer,
) -> Operation {
    Operation { method, action, words, query, body, answer }
}

/// Every path of a kind.
pub(super) fn paths(doc: &KindDoc<'_>) -> Vec<Path> {
    let base = format!("/{}", doc.group_version_path());
    let served = |verb: &str| doc.verbs.contains(&verb);
    let namespace = || ("namespace", "object name and auth scope, such as for teams and projects".to_owned());
    let (scope, scope_parameters) = if doc.namespaced {
        (format!("{base}/namespaces/{{namespace}}"), vec![namespace()])
    } else {
        (base.clone(), Vec::new())
    };
    let scoped = if doc.namespaced { "Namespaced" } else { "" };
    let mut out = Vec::new();

    let mut collection = Vec::new();
    if served("list") {
        collection.push(operation("get", "list", "list", LIST, Body::None, Answer::List));
    }
    if served("create") {
        collection.push(operation("post", "post", "create", WRITE, Body::Object, Answer::Object));
    }
    if served("deletecollection") {
        let words = "deleteCollection";
        collection.push(operation("delete", "deletecollection", words, LIST, Body::DeleteOptions, Answer::Status));
    }
    out.push(Path {
        path: format!("{scope}/{}", doc.plural),
        parameters: scope_parameters.clone(),
        operations: collection,
        id: format!("{scoped}{}", doc.kind),
    });
    if doc.namespaced && served("list") {
        out.push(Path {
            path: format!("{base}/{}", doc.plural),
            parameters: Vec::new(),
            operations: vec![operation("get", "list", "list", LIST, Body::None, Answer::List)],
            id: format!("{}ForAllNamespaces", doc.kind),
        });
    }

    let mut named = scope_parameters;
    named.push(("name", format!("name of the {}", doc.kind)));
    let mut item = readable_and_writable(served);
    if served("delete") {
        item.push(operation("delete", "delete", "delete", DELETE, Body::DeleteOptions, Answer::Status));
    }
    out.push(Path {
        path: format!("{scope}/{}/{{name}}", doc.plural),
        parameters: named.clone(),
        operations: item,
        id: format!("{scoped}{}", doc.kind),
    });
    for subresource in doc.subresources {
        // What streams or acts rather than describes (log, exec) is not described here.
        if !matches!(*subresource, "status" | "scale") {
            continue;
        }
        let mut title = subresource.to_string();
        title[..1].make_ascii_uppercase();
        out.push(Path {
            path: format!("{scope}/{}/{{name}}/{subresource}", doc.plural),
            parameters: named.clone(),
            operations: readable_and_writable(|verb| matches!(verb, "get" | "update" | "patch")),
            id: format!("{scoped}{}{title}", doc.kind),
        });
    }
    out.retain(|path| !path.operations.is_empty());
    out
}

fn readable_and_writable(served: impl Fn(&str) -> bool) -> Vec<Operation> {
    let mut out = Vec::new();
    if served("get") {
        out.push(operation("get", "get", "read", &[], Body::None, Answer::Object));
    }
    if served("update") {
        out.push(operation("put", "put", "replace", WRITE, Body::Object, Answer::Object));
    }
    if served("patch") {
        out.push(operation("patch", "patch", "patch", PATCH, Body::Patch, Answer::Object));
    }
    out
}

/// `listAppsV1NamespacedDeployment`.
pub(super) fn operation_id(doc: &KindDoc<'_>, operation: &Operation, id: &str) -> String {
    let group = if doc.group.is_empty() { "core" } else { doc.group };
    let mut out = operation.words.to_owned();
    for part in group.split(['.', '-']).take_while(|part| *part != "k8s").chain([doc.version]) {
        let mut letters = part.chars();
        out.extend(letters.next().map(|first| first.to_ascii_uppercase()));
        out.extend(letters);
    }
    out.push_str(id);
    out
}

/// The media types a patch of this kind may have.
pub(super) fn patch_types(doc: &KindDoc<'_>) -> &'static [&'static str] {
    const ALL: &[&str] = &[
        "application/json-patch+json",
        "application/merge-patch+json",
        "application/apply-patch+yaml",
        "application/strategic-merge-patch+json",
    ];
    if doc.strategic { ALL } else { &ALL[..3] }
}
