//! What every part of Posthaste shares. Layers import downwards only:
//! `domain` (pure words and rules) ← `contract` (what crosses a boundary) ← `amqp` and `db`, which do not see
//! each other; `dispatch` and `local_dispatch` join those two. `config` and `telemetry` stand beside them.

pub mod amqp;
pub mod batch;
pub mod broadcast;
pub mod catalogue;
pub mod clock;
pub mod compose;
pub mod config;
pub mod contract;
pub mod db;
pub mod dispatch;
pub mod domain;
pub mod egress;
pub mod event_messages;
pub mod faultpoint;
pub mod importing;
pub mod local_dispatch;
pub mod person_file;
pub mod probe;
pub mod provider_events;
pub mod reconnect;
pub mod replay;
pub mod seal;
pub mod service;
pub mod telemetry;
pub mod template;
pub mod token;
pub mod unsubscribe;
pub mod waha;
pub mod wake;
