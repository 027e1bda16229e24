//! Intervals of one field, and which of them a value lies in: a B+ tree by their low ends, in which every child says how far the
//! intervals below it reach.
//!
//! A search goes only where an interval begins at or below the value and one reaches it. Every node that it enters, but for those
//! on one path, holds a hit: O(log n) for the path and for each hit, in blocks that lie together in memory. Adding and
//! removing are O(log n), and move at most a block.

use super::Number;

/// A node that has so many is divided.
const MOST: usize = 32;
/// Neighbours that together have no more than this become one.
const FEW: usize = 16;

pub(super) struct Intervals<K> {
    root: Node<K>,
    len: usize,
}

enum Node<K> {
    /// By low end, then by group.
    Leaf(Vec<Interval<K>>),
    /// By first low end, then by group. Never empty.
    Inner(Vec<Child<K>>),
}

/// Both ends belong to it.
struct Interval<K> {
    low: K,
    high: K,
    group: Number,
}

struct Child<K> {
    /// Nothing below it comes before.
    first: (K, Number),
    /// Nothing below it reaches farther.
    reach: K,
    node: Box<Node<K>>,
}

impl<K> Default for Intervals<K> {
    fn default() -> Self {
        Self { root: Node::Leaf(Vec::new()), len: 0 }
    }
}

impl<K: Ord + Clone> Intervals<K> {
    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn insert(&mut self, low: K, high: K, group: Number) {
        self.len += 1;
        let Some(right) = self.root.insert(Interval { low, high, group }) else { return };
        let left = std::mem::replace(&mut self.root, Node::Leaf(Vec::new()));
        self.root = Node::Inner([left, right].into_iter().filter_map(Child::of).collect());
    }

    /// `low` is that of the group's interval.
    pub(super) fn remove(&mut self, low: &K, group: Number) {
        if self.root.remove(low, group) {
            self.len -= 1;
        }
        while let Node::Inner(children) = &mut self.root
            && children.len() <= 1
        {
            self.root = children.pop().map_or(Node::Leaf(Vec::new()), |only| *only.node);
        }
    }

    /// Calls for every interval that a value lies in, until told to stop by `false`.
    pub(super) fn each_around<Q: ?Sized + Ord>(&self, value: &Q, visit: &mut impl FnMut(Number) -> bool) -> bool
    where
        K: std::borrow::Borrow<Q>,
    {
        self.root.each_around(value, visit)
    }
}

impl<K: Ord + Clone> Node<K> {
    fn len(&self) -> usize {
        match self {
            Self::Leaf(intervals) => intervals.len(),
            Self::Inner(children) => children.len(),
        }
    }

    /// Gives the right half, when it had to be divided.
    fn insert(&mut self, interval: Interval<K>) -> Option<Self> {
        match self {
            Self::Leaf(intervals) => {
                let place = intervals.partition_point(|other| other.key() < interval.key());
                intervals.insert(place, interval);
            }
            Self::Inner(children) => {
                let after = children.partition_point(|child| child.key() <= interval.key());
                let place = after.saturating_sub(1);
                let child = children.get_mut(place)?;
                if interval.key() < child.key() {
                    child.first = (interval.low.clone(), interval.group);
                }
                if interval.high > child.reach {
                    child.reach = interval.high.clone();
                }
                if let Some(right) = child.node.insert(interval) {
                    child.look_again();
                    if let Some(right) = Child::of(right) {
                        children.insert(place + 1, right);
                    }
                }
            }
        }
        (self.len() >= MOST).then(|| self.divide())
    }

    fn divide(&mut self) -> Self {
        match self {
            Self::Leaf(intervals) => Self::Leaf(intervals.split_off(MOST / 2)),
            Self::Inner(children) => Self::Inner(children.split_off(MOST / 2)),
        }
    }

    fn remove(&mut self, low: &K, group: Number) -> bool {
        match self {
            Self::Leaf(intervals) => match intervals.binary_search_by(|other| other.key().cmp(&(low, group))) {
                Ok(place) => {
                    intervals.remove(place);
                    true
                }
                Err(_) => false,
            },
            Self::Inner(children) => {
                let after = children.partition_point(|child| child.key() <= (low, group));
                let Some(place) = after.checked_sub(1) else { return false };
                let Some(child) = children.get_mut(place) else { return false };
                if !child.node.remove(low, group) {
                    return false;
                }
                if child.node.len() == 0 {
                    children.remove(place);
                } else {
                    child.look_again();
                    join(children, place);
                }
                true
            }
        }
    }

    fn each_around<Q: ?Sized + Ord>(&self, value: &Q, visit: &mut impl FnMut(Number) -> bool) -> bool
    where
        K: std::borrow::Borrow<Q>,
    {
        match self {
            Self::Leaf(intervals) => {
                let begun = intervals.iter().take_while(|interval| interval.low.borrow() <= value);
                begun.filter(|interval| interval.high.borrow() >= value).all(|interval| visit(interval.group))
            }
            Self::Inner(children) => {
                let begun = children.iter().take_while(|child| child.first.0.borrow() <= value);
                begun.filter(|child| child.reach.borrow() >= value).all(|child| child.node.each_around(value, visit))
            }
        }
    }
}

/// Makes one of a child and a neighbour that have little.
fn join<K: Ord + Clone>(children: &mut Vec<Child<K>>, place: usize) {
    let fits = |left: usize, right: usize| {
        let lens = [left, right].map(|place| children.get(place).map(|child| child.node.len()));
        matches!(lens, [Some(left), Some(right)] if left + right <= FEW)
    };
    let left = match place.checked_sub(1) {
        Some(before) if fits(before, place) => before,
        _ if fits(place, place + 1) => place,
        _ => return,
    };
    let right = children.remove(left + 1);
    let Some(left) = children.get_mut(left) else { return };
    match (&mut *left.node, *right.node) {
        (Node::Leaf(intervals), Node::Leaf(more)) => intervals.extend(more),
        (Node::Inner(children), Node::Inner(more)) => children.extend(more),
        // All leaves are equally deep.
        _ => {}
    }
    left.look_again();
}

impl<K> Interval<K> {
    fn key(&self) -> (&K, Number) {
        (&self.low, self.group)
    }
}

impl<K: Ord + Clone> Child<K> {
    fn of(node: Node<K>) -> Option<Self> {
        let (first, reach) = extent(&node)?;
        Some(Self { first, reach, node: Box::new(node) })
    }

    fn key(&self) -> (&K, Number) {
        (&self.first.0, self.first.1)
    }

    fn look_again(&mut self) {
        if let Some((first, reach)) = extent(&self.node) {
            self.first = first;
            self.reach = reach;
        }
    }
}

/// Where the intervals of a node begin, and how far they reach.
fn extent<K: Ord + Clone>(node: &Node<K>) -> Option<((K, Number), K)> {
    match node {
        Node::Leaf(intervals) => {
            let reach = intervals.iter().map(|interval| &interval.high).max()?;
            intervals.first().map(|first| ((first.low.clone(), first.group), reach.clone()))
        }
        Node::Inner(children) => {
            let reach = children.iter().map(|child| &child.reach).max()?;
            children.first().map(|first| (first.first.clone(), reach.clone()))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn around(intervals: &Intervals<u64>, value: u64) -> Vec<Number> {
        let mut found = Vec::new();
        intervals.each_around(&value, &mut |group| {
            found.push(group);
            true
        });
        found.sort_unstable();
        found
    }

    /// Whether nothing lies outside of what the children say, and how deep it is.
    fn check(node: &Node<u64>) -> usize {
        let Node::Inner(children) = node else { return 0 };
        assert!(!children.is_empty() && children.len() < MOST);
        let depths: Vec<usize> = children
            .iter()
            .map(|child| {
                assert_eq!(Some((child.first, child.reach)), extent(&child.node));
                check(&child.node)
            })
            .collect();
        assert!(depths.iter().all(|depth| *depth == depths[0]), "all leaves are equally deep");
        depths[0] + 1
    }

    proptest! {
        #[test]
        fn it_finds_exactly_the_intervals_around(
            steps in proptest::collection::vec((0_u64..200, 0_u64..60, any::<bool>()), 0..1_500),
            values in proptest::collection::vec(0_u64..300, 20),
        ) {
            let (mut intervals, mut plain) = (Intervals::default(), Vec::<(u64, u64, Number)>::new());
            for (group, (low, length, removes)) in (0..).zip(steps) {
                if removes && !plain.is_empty() {
                    let (low, _, group) = plain.swap_remove(low as usize % plain.len());
                    intervals.remove(&low, group);
                } else {
                    plain.push((low, low + length, group));
                    intervals.insert(low, low + length, group);
                }
            }
            check(&intervals.root);
            prop_assert_eq!(intervals.len, plain.len());
            for value in values {
                let mut expected: Vec<Number> =
                    plain.iter().filter(|(low, high, _)| (*low..=*high).contains(&value)).map(|it| it.2).collect();
                expected.sort_unstable();
                prop_assert_eq!(around(&intervals, value), expected);
            }
            for (low, _, group) in plain {
                intervals.remove(&low, group);
            }
            prop_assert!(intervals.is_empty() && intervals.root.len() == 0);
        }
    }

    #[test]
    fn it_stays_flat_and_a_search_enters_few_nodes() {
        let mut intervals = Intervals::default();
        for number in 0..100_000_u32 {
            intervals.insert(u64::from(number), u64::from(number) + 9, number);
        }
        assert!(check(&intervals.root) <= 4);
        assert_eq!(around(&intervals, 50_000), (49_991..=50_000).collect::<Vec<_>>());
        for number in 0..99_990 {
            intervals.remove(&u64::from(number), number);
        }
        assert!(check(&intervals.root) <= 1, "what is nearly empty is flat again");
        assert_eq!(around(&intervals, 99_999), (99_990..100_000).collect::<Vec<_>>());
    }
}
