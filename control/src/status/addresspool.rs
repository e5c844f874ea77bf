//! Status of one AddressPool: counts, what is in force, and whether that is what is written.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use super::own::condition;
use crate::allocate::{Allocator, PoolProblem};
use crate::crd::addresspool::AddressPoolStatus;
use crate::model::addresspool::AddressPool;

/// The status of `pool`. `problems` are those of all pools; `invalid` is why a newer version of the object could not be
/// read; `before` are the conditions as they were written last: those that still hold keep their time.
pub fn status(
    pool: &AddressPool,
    allocator: &Allocator,
    problems: &[PoolProblem],
    invalid: Option<&str>,
    before: &[Condition],
) -> AddressPoolStatus {
    let in_force = allocator.in_force().find(|(name, _)| *name == pool.name);
    let (v4, v6) = (allocator.counts(&pool.name, true), allocator.counts(&pool.name, false));
    let number = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    AddressPoolStatus {
        observed_generation: pool.generation,
        addresses: in_force.into_iter().flat_map(|(_, ranges)| ranges).map(ToString::to_string).collect(),
        total_ipv4: number(v4.total),
        assigned_ipv4: number(v4.assigned),
        available_ipv4: number(v4.available),
        total_ipv6: number(v6.total),
        assigned_ipv6: number(v6.assigned),
        available_ipv6: number(v6.available),
        conditions: vec![valid(pool, problems, invalid, before)],
    }
}

/// The status of a pool that cannot be read and never could.
pub fn unread(why: &str, before: &[Condition]) -> AddressPoolStatus {
    let message = format!("not in force: {why}");
    AddressPoolStatus {
        conditions: vec![condition(None, "False", "Invalid", message, before)],
        ..AddressPoolStatus::default()
    }
}

fn valid(pool: &AddressPool, problems: &[PoolProblem], invalid: Option<&str>, before: &[Condition]) -> Condition {
    let own: Vec<&PoolProblem> = problems.iter().filter(|problem| problem.pool == pool.name).collect();
    let worst = own.iter().find(|problem| problem.refused).or(own.first());
    let (status, reason, message) = match (invalid, worst) {
        (Some(why), _) => ("False", "Invalid", format!("the last good version is used: {why}")),
        (None, Some(problem)) => {
            let status = if problem.refused { "False" } else { "True" };
            (status, problem.reason, problem.message.clone())
        }
        (None, None) => ("True", "InForce", "addresses are given out as written".into()),
    };
    condition(pool.generation, status, reason, message, before)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use k8s_openapi::jiff::Timestamp;

    use super::*;
    use crate::model::addresspool::AddressRange;

    fn pool(name: &str, first: &str, last: &str) -> AddressPool {
        AddressPool {
            name: name.into(),
            uid: String::new(),
            created_at_s: 0,
            generation: Some(3),
            ranges: vec![AddressRange::new(first.parse().unwrap(), last.parse().unwrap()).unwrap()],
            last_good: Vec::new(),
            complaint: None,
            auto_assign: true,
            avoid_buggy: false,
            pinning: None,
        }
    }

    #[test]
    fn it_says_what_is_in_force_and_why() {
        let (good, bad) = (pool("a", "192.0.2.0", "192.0.2.7"), pool("b", "192.0.2.7", "192.0.2.9"));
        let huge = pool("c", "2001:db8::", "2001:db8::ffff:ffff:ffff:ffff");
        let mut allocator = Allocator::default();
        let problems = allocator.set_pools(vec![good.clone(), bad.clone(), huge.clone()], Vec::new());
        let of = |pool, invalid| status(pool, &allocator, &problems, invalid, &[]);
        let first = of(&good, None);
        assert_eq!(
            (first.addresses.as_slice(), first.total_ipv4, first.available_ipv4),
            (&["192.0.2.0/29".to_string()][..], 8, 8)
        );
        assert_eq!((first.conditions[0].status.as_str(), first.observed_generation), ("True", Some(3)));
        let second = of(&bad, None);
        assert_eq!((second.addresses.len(), second.total_ipv4), (0, 0));
        assert_eq!((second.conditions[0].status.as_str(), second.conditions[0].reason.as_str()), ("False", "Overlap"));
        assert!(second.conditions[0].message.contains("192.0.2.7 is also in pool a"));
        assert_eq!(of(&huge, None).total_ipv6, i64::MAX);
        assert_eq!(of(&good, Some("spec.addresses: x")).conditions[0].reason, "Invalid");
        // What still holds keeps its time.
        let mut before = first.conditions.clone();
        before[0].last_transition_time = Time(Timestamp::UNIX_EPOCH);
        assert_eq!(status(&good, &allocator, &problems, None, &before).conditions, before);
        assert_ne!(
            status(&bad, &allocator, &problems, None, &before).conditions[0].last_transition_time,
            before[0].last_transition_time
        );
    }
}
