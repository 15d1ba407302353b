//! Which instances are an activator's own, when several activators share a Revision (E1.7).

/// The part of `sorted` that the activator at position `index` of `activators` uses. Every instance is somebody's,
/// and an activator is never left without one while there is any. An activator that does not know its position
/// uses all of them.
pub fn subset<T: Clone>(sorted: &[T], index: Option<usize>, activators: usize) -> Vec<T> {
    let Some(index) = index.filter(|_| activators > 1) else { return sorted.to_vec() };
    if sorted.is_empty() {
        return Vec::new();
    }
    let (share, rest) = (sorted.len() / activators, sorted.len() % activators);
    if share == 0 {
        return vec![sorted[index % sorted.len()].clone()];
    }
    let index = index % activators;
    let mut own = sorted[index * share..(index + 1) * share].to_vec();
    // The instances left over at the end go to the first activators, one each.
    if index < rest {
        own.push(sorted[activators * share + index].clone());
    }
    own
}
