//! What is held open, and what is let go: without an endpoint, look by look.

use std::fs;

use super::*;
use crate::logs::tests::Place;

const BOUNDS: Bounds = Bounds { size: 1 << 20, age: std::time::Duration::ZERO };

fn wishes(volume: bool) -> Wishes {
    let volume = volume.then(|| VolumeName { name: "var-log".into(), path: "/var/log".into() });
    Wishes { volume, ..Wishes::default() }
}

/// Looks and sends all that is there.
fn send(tail: &mut Tail, wishes: &Wishes) -> Vec<String> {
    let mut losses = tail.look(wishes).unwrap();
    let mut batch = Batch::default();
    tail.fill(&mut batch, BOUNDS, wishes, 1, &mut losses);
    tail.arrived(&batch.marks);
    tail.settle();
    assert_eq!(losses.lines, 0);
    batch.records.into_iter().map(|record| record.body).collect()
}

#[test]
fn what_is_out_of_sight_for_longest_is_given_up_first() {
    let file = |inode| LogKey::File { container: "c".into(), inode };
    let check = |held: &[(u64, u64)], want: &[u64]| {
        let keyed = held.iter().zip(0..).map(|((since, bytes), inode)| (*since, *bytes, file(inode)));
        let mut got = surplus(keyed.collect());
        got.sort();
        assert_eq!(got, want.iter().map(|inode| file(*inode)).collect::<Vec<_>>(), "{held:?}");
    };
    check(&[], &[]);
    check(&[(1, GONE_BYTES)], &[]);
    check(&[(1, GONE_BYTES + 1)], &[0]);
    check(&[(1, 10), (3, GONE_BYTES - 10), (2, 1)], &[0]);
    // One that is too large takes no other with it.
    check(&[(1, 10), (2, GONE_BYTES + 1)], &[1]);
    let mut many = vec![(7, 0); GONE];
    many.push((6, 0));
    check(&many, &[GONE as u64]);
}

#[test]
fn files_that_are_removed_unsent_are_held_within_bounds() {
    let place = Place::new();
    let pod = place.pod("p");
    let mut tail = Tail::open(place.shelf.clone(), &place.checkpoint());
    let mut lost = 0;
    for round in 0..4 {
        let paths: Vec<_> = (0..GONE / 2).map(|n| pod.part.join(format!("{round}-{n}.log"))).collect();
        paths.iter().for_each(|path| fs::write(path, "one\ntwo\n").unwrap());
        lost += tail.look(&wishes(true)).unwrap().lines;
        paths.iter().for_each(|path| fs::remove_file(path).unwrap());
    }
    lost += tail.look(&wishes(true)).unwrap().lines;
    assert_eq!((tail.pods.values().map(Pod::files).sum::<usize>(), lost), (GONE, 2 * GONE as u64));
}

#[test]
fn an_ended_pod_is_done_with_when_files_are_collected_no_more() {
    let place = Place::new();
    let mut pod = place.pod("p");
    let mut tail = Tail::open(place.shelf.clone(), &place.checkpoint());
    pod.say(0, 1);
    fs::write(pod.part.join("app.log"), "sent\n").unwrap();
    assert_eq!(send(&mut tail, &wishes(true)), ["line 0", "sent"]);
    fs::write(pod.part.join("late.log"), "unsent\n").unwrap();
    tail.look(&wishes(true)).unwrap();
    pod.end();
    pod.say(1, 2);
    assert_eq!(tail.look(&wishes(false)).unwrap().lines, 1);
    assert_eq!(send(&mut tail, &wishes(false)), ["line 1"]);
    assert!(tail.pods.is_empty() && tail.checkpoint.is_done("n_p_u-p"));
}

#[test]
fn runs_of_a_container_are_read_one_after_the_other() {
    let place = Place::new();
    let mut pod = place.pod("p");
    for _ in 0..30 {
        pod.record("stdout", "F", &"x".repeat(10_000));
    }
    for run in 1..3 {
        fs::copy(pod.log(), pod.logs.join(format!("c/{run}.log"))).unwrap();
    }
    let mut tail = Tail::open(place.shelf.clone(), &place.checkpoint());
    tail.look(&wishes(true)).unwrap();
    let mut batch = Batch::default();
    tail.fill(&mut batch, BOUNDS, &wishes(true), 1, &mut Losses::default());
    let runs: Vec<_> = batch.records.iter().map(|record| record.origin.restarts.unwrap()).collect();
    assert_eq!(runs, [[0; 30], [1; 30], [2; 30]].concat());
}

#[test]
fn ended_pods_are_read_a_few_at_a_time() {
    let place = Place::new();
    for n in 0..ENDED_AT_ONCE * 2 + 5 {
        let mut pod = place.pod(&format!("p{n:02}"));
        pod.say(n, n + 1);
        pod.end();
    }
    let mut tail = Tail::open(place.shelf.clone(), &place.checkpoint());
    let sent = |tail: &mut Tail| send(tail, &wishes(true)).len();
    assert_eq!([sent(&mut tail), sent(&mut tail), sent(&mut tail)], [ENDED_AT_ONCE, ENDED_AT_ONCE, 5]);
}
