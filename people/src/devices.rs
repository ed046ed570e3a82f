//! Devices of people, which get push notifications.

use actix_web::{HttpResponse, web::Data};
use chrono::{DateTime, Utc};
use domain::{
    Address, Channel, Device, Platform,
    contract::{
        contact::is_user_id,
        device::is_subscription,
        submission::{FieldError, Recipient, Rules, check_recipient},
    },
    token::Role,
};
use records::Records;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;
use web::{
    Web, audit,
    auth::{Anyone, Identity},
    body::JsonBody,
    openapi::SubscriptionBody,
    params::{Id, PathUser},
    problem::{Code, Problem},
};

use crate::users::require_access;

/// A new device. Either `device_token` or `subscription`.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = DeviceRegistration)]
pub struct DeviceBody {
    /// The person; a user may leave it out.
    #[serde(alias = "userId")]
    #[schema(max_length = 200, example = "user123")]
    user_id: Option<String>,
    /// Its token at Google or Apple.
    #[serde(alias = "deviceToken")]
    #[schema(value_type = Option<String>, max_length = 2048, example = "device-token-here")]
    device_token: Option<Recipient>,
    /// A browser's subscription to Web Push.
    #[schema(value_type = Option<SubscriptionBody>)]
    subscription: Option<Recipient>,
    /// `ios`, `android` or `web`; default: derived from the form of the token.
    #[schema(example = "android")]
    platform: Option<String>,
}

/// A registered device.
#[derive(Serialize, ToSchema)]
#[schema(as = RegisteredDevice)]
pub struct DeviceAnswer {
    /// Its id.
    pub id: Uuid,
    /// The person who has it now.
    pub user_id: String,
    /// `ios`, `android` or `web`, if given.
    #[schema(value_type = Option<String>, example = "android")]
    pub platform: Option<Platform>,
    /// When its token came first.
    pub created_at: DateTime<Utc>,
}

impl DeviceBody {
    fn check(self, caller: &Identity, rules: &Rules) -> Result<(String, Device), Problem> {
        let mut faults = Vec::new();
        let own = (caller.role == Role::User).then(|| caller.subject.clone());
        let user = self.user_id.or(own).unwrap_or_default();
        if !is_user_id(&user) {
            faults.push(FieldError::new("user_id", "must be a text of 1 to 200 bytes without control characters"));
        }
        let platform: Option<Platform> = match self.platform.as_deref().map(|word| word.to_lowercase().parse()) {
            None => None,
            Some(Ok(platform)) => Some(platform),
            Some(Err(unknown)) => {
                faults.push(FieldError::new("platform", unknown.to_string()));
                None
            }
        };
        match token(self.device_token, self.subscription, rules) {
            Ok(token) if is_subscription(token.reveal()) => {
                if platform.is_some_and(|platform| platform != Platform::Web) {
                    faults.push(FieldError::new("platform", "must be web: that is what a subscription is for"));
                }
                if faults.is_empty() {
                    return Ok((user, Device { token, platform: Some(Platform::Web) }));
                }
            }
            Ok(token) if faults.is_empty() => return Ok((user, Device { token, platform })),
            Ok(_) => {}
            Err(fault) => faults.push(fault),
        }
        Err(Problem::validation(faults))
    }
}

fn token(token: Option<Recipient>, subscription: Option<Recipient>, rules: &Rules) -> Result<Address, FieldError> {
    let (field, text) = match (token, subscription) {
        (Some(Recipient(text)), None) => ("device_token", text),
        (None, Some(Recipient(text))) if is_subscription(&text) => ("subscription", text),
        (None, Some(_)) => {
            return Err(FieldError::new("subscription", "must be an object with endpoint, keys.p256dh and keys.auth"));
        }
        _ => return Err(FieldError::new("device_token", "is required, or `subscription`; not both")),
    };
    check_recipient(Channel::Push, &text, rules).map_err(|fault| FieldError::new(field, fault.message))
}

/// Registers a device for push notifications.
///
/// An unknown person is created. A token that is registered again is the same device. A call of a producer or an admin
/// moves another person's device; a user's own call is answered with 409. If a person has more than 50 devices, the
/// oldest is removed.
///
/// Roles: producer, admin; a user for itself.
#[utoipa::path(post, path = "/api/notifications/register-device", tag = "people",
    request_body(content = DeviceBody, example = json!({"user_id": "user123", "device_token": "device-token-here"})),
    responses((status = 201, description = "Registered", body = DeviceAnswer),
        (status = 200, description = "Known already; it belongs to this person now", body = DeviceAnswer)))]
pub async fn register(caller: Anyone, web: Data<Web>, body: JsonBody) -> Result<HttpResponse, Problem> {
    if !matches!(caller.0.role, Role::Admin | Role::Producer | Role::User) {
        return Err(Problem::new(Code::Forbidden, "Use a credential with one of these roles: producer, admin, user."));
    }
    let (user_id, device) = body.parse::<DeviceBody>().await?.check(&caller.0, &web.rules())?;
    require_access(&caller.0, &user_id)?;
    let (tenant, whose) = (caller.0.tenant, user_id.clone());
    // A leaked token must not redirect another person's notifications.
    let may_move = caller.0.role != Role::User;
    let made =
        web.queries.run(async move |store| store.devices().register(tenant, &whose, &device, may_move).await).await?;
    let taken =
        || Problem::conflict("This device is another person's: let the backend register it, or remove it there.");
    let made = made.ok_or_else(taken)?;
    let answer = DeviceAnswer { id: made.id, user_id, platform: made.platform, created_at: made.created_at };
    let mut response = if made.is_new { HttpResponse::Created() } else { HttpResponse::Ok() };
    Ok(audit::made(response.json(answer), made.id))
}

/// Removes a device.
///
/// Roles: producer, admin; a user for itself.
#[utoipa::path(delete, path = "/api/users/{user_id}/devices/{id}", tag = "people",
    params(("user_id" = String, Path, description = "The person"), ("id" = Uuid, Path, description = "The device")),
    responses((status = 204, description = "Taken away")))]
pub async fn remove(caller: Anyone, user: PathUser, id: Id, web: Data<Web>) -> Result<HttpResponse, Problem> {
    let (tenant, user, id) = (caller.0.tenant, user.0.into_inner(), id.0);
    require_access(&caller.0, &user)?;
    let was_there = web.queries.run(async move |store| store.devices().remove(tenant, &user, id).await).await?;
    if was_there { Ok(HttpResponse::NoContent().finish()) } else { Err(Problem::not_found("device")) }
}

#[cfg(test)]
mod tests {
    use domain::{TenantId, contract::guard::Guard};
    use serde_json::json;

    use super::*;

    fn check(role: Role, body: serde_json::Value) -> Result<(String, Device), Problem> {
        let caller = Identity { tenant: TenantId(1), role, subject: "ada".to_owned(), via: None };
        let now = DateTime::from_timestamp(1_800_000_000, 0).unwrap();
        let rules = Rules { now, guard: Guard::default(), media_guard: Guard::default() };
        serde_json::from_value::<DeviceBody>(body).unwrap().check(&caller, &rules)
    }

    #[test]
    fn the_printed_registration_is_taken_and_a_user_need_not_say_who_it_is() {
        let (user, device) = check(Role::Producer, json!({"user_id": "user123", "device_token": "token"})).unwrap();
        assert_eq!((user.as_str(), device.token.reveal(), device.platform), ("user123", "token", None));
        let (user, device) = check(Role::User, json!({"device_token": "token", "platform": "APNS"})).unwrap();
        assert_eq!((user.as_str(), device.platform), ("ada", Some(Platform::Ios)));
    }

    #[test]
    fn what_no_push_service_could_reach_is_refused() {
        let keys = json!({"p256dh": "BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4", "auth": "BTBZMqHH6r4Tts7J_aSIgg"});
        let subscription = |endpoint: &str| json!({"endpoint": endpoint, "keys": keys});
        let fine = json!({"user_id": "u", "subscription": subscription("https://push.example.com/x")});
        assert_eq!(check(Role::Admin, fine).unwrap().1.platform, Some(Platform::Web));
        for body in [
            json!({"user_id": "u"}),
            json!({"device_token": "t"}),
            json!({"user_id": "u", "device_token": ""}),
            json!({"user_id": "u", "device_token": "t", "platform": "windows"}),
            json!({"user_id": "u", "device_token": "t", "subscription": subscription("https://push.example.com/x")}),
            json!({"user_id": "u", "subscription": "t"}),
            json!({"user_id": "u", "subscription": subscription("https://10.0.0.1/x")}),
            json!({"user_id": "u", "platform": "ios", "subscription": subscription("https://push.example.com/x")}),
        ] {
            assert!(check(Role::Admin, body.clone()).is_err(), "{body}");
        }
    }
}
