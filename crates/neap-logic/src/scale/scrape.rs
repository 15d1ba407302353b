//! How many pods of a Revision are asked for their statistics, which of them first, and what the answers say about all
//! (facts E3.2 to E3.5).

use std::time::Duration;

use neap_api::statistics::Statistics;

/// Up to so many pods every one is asked.
const SMALL: usize = 3;
/// 1.96² · 100 / 5²: with this many the average is right to a twentieth, 19 times out of 20, whatever the population.
const LARGE_SAMPLE: f64 = 1.96 * 1.96 * 100.0 / 25.0;

/// How many of so many pods must answer.
pub fn sample_size(pods: usize) -> usize {
    if pods <= SMALL {
        return pods;
    }
    #[expect(clippy::cast_precision_loss, reason = "pods are far below 2^52")]
    let population = pods as f64;
    let size = (population * LARGE_SAMPLE / (population + LARGE_SAMPLE - 1.0)).ceil();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 3 and 16")]
    let size = size as usize;
    size.min(pods)
}

/// Puts pods that have been there for the whole window first: the young ones are not yet like the others. The order is
/// otherwise kept, so that a shuffled list stays shuffled.
pub fn old_first<P>(pods: &mut [P], window: Duration, age: impl Fn(&P) -> Duration) {
    pods.sort_by_key(|pod| age(pod) < window);
}

/// What all pods together do, as far as no activator reports it: concurrency and requests per second; `None` when too few
/// answered.
pub fn whole(answers: &[Statistics], pods: usize) -> Option<(f64, f64)> {
    if answers.is_empty() || answers.len() < sample_size(pods) {
        return None;
    }
    #[expect(clippy::cast_precision_loss, reason = "pods are far below 2^52")]
    let share = pods as f64 / answers.len() as f64;
    let concurrency = answers.iter().map(|a| a.average_concurrent_requests - a.average_proxied_concurrent_requests);
    let requests = answers.iter().map(|a| a.request_count - a.proxied_request_count);
    // An application of its own making may say anything.
    let sum = |numbers: &mut dyn Iterator<Item = f64>| numbers.filter(|n| n.is_finite()).sum::<f64>().max(0.0) * share;
    Some((sum(&mut concurrency.into_iter()), sum(&mut requests.into_iter())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e3_2_sample_size() {
        for (pods, want) in [(0, 0), (1, 1), (3, 3), (4, 4), (5, 4), (10, 7), (16, 9), (100, 14), (1000, 16)] {
            assert_eq!(sample_size(pods), want, "{pods} pods");
        }
    }

    #[test]
    fn e3_3_old_pods_first() {
        let mut pods = [(1, 5), (2, 90), (3, 60), (4, 59)];
        old_first(&mut pods, Duration::from_secs(60), |(_, age)| Duration::from_secs(*age));
        assert_eq!(pods.map(|(name, _)| name), [2, 3, 1, 4]);
    }

    #[test]
    fn e3_5_the_activator_reports_its_own_part() {
        let answer = |concurrency, proxied, requests| Statistics {
            average_concurrent_requests: concurrency,
            average_proxied_concurrent_requests: proxied,
            request_count: requests,
            proxied_request_count: 1.0,
            ..Statistics::default()
        };
        let check = |answers: &[Statistics], pods, want| assert_eq!(whole(answers, pods), want);
        check(&[answer(4.0, 1.0, 11.0)], 1, Some((3.0, 10.0)));
        check(&[answer(4.0, 1.0, 11.0), answer(2.0, 1.0, 1.0)], 2, Some((4.0, 10.0)));
        // 4 of 5 answered: the fifth is taken to be like them.
        check(&vec![answer(2.0, 0.0, 9.0); 4], 5, Some((10.0, 40.0)));
        check(&[answer(f64::NAN, 0.0, f64::INFINITY)], 1, Some((0.0, 0.0)));
        check(&[answer(0.0, 1.0, 0.0)], 1, Some((0.0, 0.0)));
        check(&[answer(1.0, 0.0, 1.0)], 2, None);
        check(&[], 0, None);
    }
}
