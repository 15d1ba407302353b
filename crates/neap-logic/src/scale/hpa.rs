//! The HorizontalPodAutoscaler of a Revision of class HPA (E5.1).

use k8s_openapi::api::autoscaling::v2::{
    CrossVersionObjectReference, HPAScalingRules, HorizontalPodAutoscalerBehavior, HorizontalPodAutoscalerSpec,
    MetricIdentifier, MetricSpec, MetricTarget, PodsMetricSource, ResourceMetricSource,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use neap_api::autoscaling::PodAutoscaler;
use neap_api::keys::autoscaling as keys;

use super::settings::{Scaling, annotation_duration, annotation_number};

/// The metric of this class where none is named.
const DEFAULT_METRIC: &str = "cpu";

/// The spec of the HorizontalPodAutoscaler for a PodAutoscaler. Without a target it names no metric, which leaves
/// Kubernetes' default in force.
pub fn hpa_spec(pa: &PodAutoscaler, scaling: &Scaling) -> HorizontalPodAutoscalerSpec {
    let annotations = pa.metadata.annotations.as_ref();
    let metric = annotations.and_then(|all| all.get(keys::METRIC)).map_or(DEFAULT_METRIC, String::as_str);
    let target = annotations.and_then(|all| annotation_number::<f64>(all, keys::TARGET));
    let window = annotations.and_then(|all| annotation_duration(all, keys::WINDOW));
    let bounds = scaling.bounds(true);
    let reference = &pa.spec.scale_target_ref;
    HorizontalPodAutoscalerSpec {
        scale_target_ref: CrossVersionObjectReference {
            api_version: Some(reference.api_version.clone()).filter(|version| !version.is_empty()),
            kind: reference.kind.clone(),
            name: reference.name.clone(),
        },
        min_replicas: Some(signed(bounds.min)).filter(|min| *min > 0),
        max_replicas: bounds.max.map_or(i32::MAX, signed),
        metrics: target.map(|target| vec![metric_spec(metric, target)]),
        behavior: window.map(|window| {
            let rules = HPAScalingRules {
                stabilization_window_seconds: i32::try_from(window.as_secs()).ok(),
                ..HPAScalingRules::default()
            };
            HorizontalPodAutoscalerBehavior { scale_up: Some(rules.clone()), scale_down: Some(rules) }
        }),
    }
}

fn metric_spec(metric: &str, target: f64) -> MetricSpec {
    let whole = target.ceil() as i64;
    let resource = |target| MetricSpec {
        type_: "Resource".to_owned(),
        resource: Some(ResourceMetricSource { name: metric.to_owned(), target }),
        ..MetricSpec::default()
    };
    let value = |quantity: String| MetricTarget {
        type_: "AverageValue".to_owned(),
        average_value: Some(Quantity(quantity)),
        ..MetricTarget::default()
    };
    match metric {
        "cpu" => resource(MetricTarget {
            type_: "Utilization".to_owned(),
            average_utilization: Some(i32::try_from(whole).unwrap_or(i32::MAX)),
            ..MetricTarget::default()
        }),
        "memory" => resource(value(format!("{}Mi", target as i64))),
        custom => MetricSpec {
            type_: "Pods".to_owned(),
            pods: Some(PodsMetricSource {
                metric: MetricIdentifier { name: custom.to_owned(), selector: None },
                target: value(whole.to_string()),
            }),
            ..MetricSpec::default()
        },
    }
}

fn signed(count: u32) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}
