//! Request logs by template (E2.12). What a template may name is what upstream's may: the request's own fields and the
//! methods of it that logs use.
//!
//! A line is made when the answer has ended and handed on whole; where it goes, and whether it may wait there, is the
//! roof's business.

use std::sync::Arc;

use http::Version;
use http::header::{self, HeaderMap};
use http_body::Body as _;
use neap_logic::names::template::Template;
use neap_proxy::{Connection, OnEnd, Outcome, Request, Response};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::settings::Owner;

/// Takes one line, with its end. Called on the worker's thread: it must not block.
pub trait RequestLog: Send + Sync + 'static {
    /// A request has ended.
    fn line(&self, line: String);
}

pub(crate) struct Logger {
    pub(crate) template: Template,
    pub(crate) owner: Arc<Owner>,
    pub(crate) sink: Arc<dyn RequestLog>,
}

/// One request's line in the making.
pub(crate) struct Entry {
    logger: Arc<Logger>,
    context: Value,
    arrived: Instant,
    written: bool,
}

impl Entry {
    pub(crate) fn begin(logger: &Arc<Logger>, request: &Request, connection: &Connection, arrived: Instant) -> Self {
        let headers = request.headers();
        let text = |name| headers.get(name).map_or_else(Default::default, |v| String::from_utf8_lossy(v.as_bytes()));
        let uri = request.uri();
        let length = match (request.body().size_hint().exact(), request.body().is_end_stream()) {
            (_, true) => 0,
            (Some(length), false) => i64::try_from(length).unwrap_or(i64::MAX),
            (None, false) => -1,
        };
        let owner = &logger.owner;
        let context = json!({
            "Request": {
                "Method": request.method().as_str(),
                "RequestURI": uri.path_and_query().map_or("*", |path| path.as_str()),
                "URL": { "Path": uri.path(), "RawQuery": uri.query().unwrap_or_default() },
                "Host": text(header::HOST),
                "ContentLength": length,
                "UserAgent": text(header::USER_AGENT),
                "Referer": text(header::REFERER),
                "RemoteAddr": connection.peer.to_string(),
                "Proto": proto(request.version()),
                "Header": fields(headers),
            },
            "Revision": {
                "Name": owner.revision, "Namespace": owner.namespace, "Service": owner.service,
                "Configuration": owner.configuration, "PodName": owner.pod, "PodIP": owner.pod_ip,
            },
            "TraceID": trace_id(headers),
        });
        Self { logger: logger.clone(), context, arrived, written: false }
    }

    /// The answer begins; its end writes the line.
    pub(crate) fn watch(mut self, response: Response) -> Response {
        self.context["Response"] = json!({ "Code": response.status().as_u16(), "Size": 0, "Latency": 0.0 });
        response.map(|body| body.on_end(self))
    }
}

impl OnEnd for Entry {
    fn on_end(&mut self, _outcome: Outcome, bytes: u64) {
        if std::mem::replace(&mut self.written, true) {
            return;
        }
        self.context["Response"]["Size"] = bytes.into();
        self.context["Response"]["Latency"] = self.arrived.elapsed().as_secs_f64().into();
        let mut line = self.logger.template.render(&self.context).unwrap_or_else(|error| {
            format!("the request log's {error}: {} {}", self.context["Request"]["Method"], self.context["Response"])
        });
        // Who reads logs reads lines.
        if !line.ends_with('\n') {
            line.push('\n');
        }
        self.logger.sink.line(line);
    }
}

fn proto(version: Version) -> &'static str {
    match version {
        Version::HTTP_2 => "HTTP/2.0",
        Version::HTTP_10 => "HTTP/1.0",
        _ => "HTTP/1.1",
    }
}

/// Names as Go spells them, each with its values.
fn fields(headers: &HeaderMap) -> Value {
    let all = headers.keys().map(|name| {
        let values = headers.get_all(name).iter().map(|v| String::from_utf8_lossy(v.as_bytes()).into());
        (canonical(name.as_str()), Value::Array(values.collect()))
    });
    Value::Object(all.collect())
}

/// `user-agent` is `User-Agent`.
fn canonical(name: &str) -> String {
    let mut first = true;
    let letter = |c: char| if std::mem::replace(&mut first, c == '-') { c.to_ascii_uppercase() } else { c };
    name.chars().map(letter).collect()
}

/// Of W3C's header, else of Zipkin's.
fn trace_id(headers: &HeaderMap) -> String {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let parent = text("traceparent").and_then(|parent| parent.split('-').nth(1));
    parent.or_else(|| text("x-b3-traceid")).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use neap_logic::config::observability::REQUEST_LOG_TEMPLATE;
    use neap_proxy::Body;

    use super::*;

    #[derive(Default)]
    struct Lines(Mutex<Vec<String>>);

    impl RequestLog for Lines {
        fn line(&self, line: String) {
            self.0.lock().expect("is whole").push(line);
        }
    }

    fn check(template: &str, want: &str) {
        let lines = Arc::new(Lines::default());
        let owner = Owner { revision: "r".into(), pod_ip: "198.19.0.7".into(), ..Owner::default() };
        let template = template.parse().expect("is a template");
        let logger = Arc::new(Logger { template, owner: Arc::new(owner), sink: lines.clone() });
        let request = http::Request::post("/a?b=%22c")
            .header("host", "h")
            .header("user-agent", "curl/8")
            .header("x-my-own", "yes")
            .header("traceparent", "00-abc-def-00")
            .body(Body::full("four"))
            .expect("a request");
        let connection = Connection::plain(([192, 0, 2, 7], 4711).into(), ([192, 0, 2, 1], 80).into(), 0);
        let entry = Entry::begin(&logger, &request, &connection, Instant::now());
        let mut response = http::Response::new(Body::empty());
        *response.status_mut() = http::StatusCode::CREATED;
        drop(entry.watch(response));
        assert_eq!(*lines.0.lock().expect("is whole"), [want]);
    }

    #[tokio::test(start_paused = true)]
    async fn e2_12_lines_are_made_by_template() {
        check("{{.Request.Method}} {{.Request.Host}} {{.Response.Code}} {{.TraceID}}", "POST h 201 abc\n");
        check("{{.Request.ContentLength}} {{.Request.Proto}} {{.Request.RemoteAddr}}\n", "4 HTTP/1.1 192.0.2.7:4711\n");
        check(r#"{{index .Request.Header "X-My-Own"}} {{.Revision.Name}}"#, "[\"yes\"] r\n");
        let nothing = "the request log's template names \".Nothing\", which does not exist here: \
                       \"POST\" {\"Code\":201,\"Latency\":0.0,\"Size\":0}\n";
        check("{{.Nothing}}", nothing);
    }

    #[tokio::test(start_paused = true)]
    async fn e2_12_the_default_template_is_json() {
        let want = concat!(
            r#"{"httpRequest": {"requestMethod": "POST", "requestUrl": "/a?b\u003D%22c", "requestSize": "4", "#,
            r#""status": 201, "responseSize": "0", "userAgent": "curl/8", "remoteIp": "192.0.2.7:4711", "#,
            r#""serverIp": "198.19.0.7", "referer": "", "latency": "0.0s", "protocol": "HTTP/1.1"}, "traceId": "abc"}"#,
            "\n"
        );
        check(REQUEST_LOG_TEMPLATE, want);
    }
}
