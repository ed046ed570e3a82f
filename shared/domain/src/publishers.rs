//! Which broker users may publish for which tenants.

use std::collections::HashMap;

use super::TenantId;

/// Whether a broker user must be mapped to a tenant to publish for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequireMapping {
    /// As soon as any user is mapped.
    Auto,
    /// Yes.
    Always,
    /// Only for tenants that have mapped users.
    Never,
}

/// The mapped users, and the rule for all others.
#[derive(Clone, Debug)]
pub struct Publishers {
    tenants: HashMap<String, TenantId>,
    require: RequireMapping,
}

impl Publishers {
    /// Each of `users` may publish for one tenant.
    pub fn new(users: impl IntoIterator<Item = (String, TenantId)>, require: RequireMapping) -> Self {
        Self { tenants: users.into_iter().collect(), require }
    }

    /// Whether `user` may publish for `tenant`; if not, the reason as a clause.
    pub fn check(&self, tenant: TenantId, user: Option<&str>) -> Result<(), &'static str> {
        match user.and_then(|user| self.tenants.get(user)) {
            Some(own) if *own == tenant => Ok(()),
            Some(_) => Err("user_id: this broker user speaks for another tenant"),
            None if self.is_open(tenant) => Ok(()),
            None if user.is_none() => Err("user_id: is required for this tenant"),
            None => Err("user_id: this broker user does not speak for the tenant"),
        }
    }

    /// Whether `user`, who may publish for `tenant`, may get answers in `queue`. The broker does not check that name.
    /// The queue must begin with the user's name and a dot. A user of a tenant that is open to all may name any queue
    /// except those of mapped users. Where the name of one user begins the name of another (`shop`, `shop.eu`), a queue
    /// belongs to the mapped user with the longest name.
    pub fn may_be_answered(&self, tenant: TenantId, user: Option<&str>, queue: &str) -> bool {
        let is_of = |user: &str| queue.strip_prefix(user).is_some_and(|rest| rest.starts_with('.'));
        let owners = self.tenants.keys().map(String::as_str).filter(|user| is_of(user));
        match owners.max_by_key(|user| user.len()) {
            Some(owner) => user == Some(owner),
            None => user.is_some_and(is_of) || self.is_open(tenant),
        }
    }

    /// Whether every user of the broker may publish for `tenant`.
    pub fn is_open(&self, tenant: TenantId) -> bool {
        match self.require {
            RequireMapping::Always => false,
            RequireMapping::Auto => self.tenants.is_empty(),
            RequireMapping::Never => self.tenants.values().all(|mapped| *mapped != tenant),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn publishers(require: RequireMapping) -> Publishers {
        Publishers::new([("orders".to_owned(), TenantId(1))], require)
    }

    #[test]
    fn a_mapped_user_publishes_for_its_own_tenant_only() {
        for require in [RequireMapping::Auto, RequireMapping::Always, RequireMapping::Never] {
            let check = |tenant, user| publishers(require).check(TenantId(tenant), user).is_ok();
            assert!(check(1, Some("orders")));
            for (tenant, user) in [(1, None), (1, Some("other")), (2, Some("orders"))] {
                assert!(!check(tenant, user), "{require:?} {tenant} {user:?}");
            }
        }
    }

    #[test]
    fn once_a_mapping_exists_a_tenant_without_one_is_closed_unless_a_setting_opens_it() {
        let open = |require| publishers(require).is_open(TenantId(2));
        assert!(!open(RequireMapping::Auto) && !open(RequireMapping::Always) && open(RequireMapping::Never));
        let unmapped = |require| Publishers::new([], require).check(TenantId(2), None).is_ok();
        assert!(unmapped(RequireMapping::Auto) && !unmapped(RequireMapping::Always) && unmapped(RequireMapping::Never));
    }

    #[test]
    fn answers_go_to_queues_of_their_own_publisher_and_where_a_tenant_is_open_to_any_that_is_not_a_mapped_users() {
        let queues = ["orders.replies", "ordersreplies", "billing.replies"];
        let of = |require, tenant, user| {
            queues.map(|queue| publishers(require).may_be_answered(TenantId(tenant), user, queue))
        };
        assert_eq!(of(RequireMapping::Auto, 1, Some("orders")), [true, false, false]);
        assert_eq!(of(RequireMapping::Never, 2, Some("billing")), [false, true, true]);
        assert_eq!(of(RequireMapping::Never, 2, None), [false, true, true]);
        let names = ["shop", "shop.eu"].map(str::to_owned);
        let nested = Publishers::new(names.into_iter().zip([TenantId(1), TenantId(2)]), RequireMapping::Never);
        for (tenant, user, queue, wanted) in [
            (1, "shop", "shop.replies", true),
            (1, "shop", "shop.eu", true),
            (1, "shop", "shop.eu.replies", false),
            (2, "shop.eu", "shop.eu.replies", true),
            (2, "shop.eu", "shop.replies", false),
            (3, "shop.us", "shop.us.replies", false),
        ] {
            assert_eq!(nested.may_be_answered(TenantId(tenant), Some(user), queue), wanted, "{user} {queue}");
        }
        let unmapped = Publishers::new([], RequireMapping::Auto);
        assert!(queues.iter().all(|queue| unmapped.may_be_answered(TenantId(1), None, queue)));
    }
}
