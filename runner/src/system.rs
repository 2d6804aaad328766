//! The system: a master, its replicas and their Sentinels. A run repeats *observe → decide → apply → verify*
//! until the system is verified.
//!
//! | module | does | I/O |
//! | --- | --- | --- |
//! | [`observe`] | reads the state of every registered node | yes |
//! | [`decide`] | chooses the master, and plans what to change | no |
//! | [`plan`] | contains the plan: the commands, by node | no |
//! | [`summary`] | describes a plan in words | no |
//! | [`temporary`] | keeps the temporary settings of a run, and restores them | yes |
//! | [`apply`] | carries a plan out, as much as possible at once | yes |
//! | [`verify`] | asks every node until the system is as planned, and is seen to work | yes |
//! | [`stream`] | sends something through the master's stream, and sees it arrive | yes |
//! | [`judge`] | finds in the answers what keeps the system from being verified | no |
//! | [`handover`] | changes the master without losing an acknowledged write | yes |
//! | [`rotation`] | determines the commands for another password of an ACL user | no |

pub mod apply;
pub mod decide;
pub mod handover;
pub mod judge;
pub mod members;
pub mod observe;
pub mod plan;
pub mod rotation;
pub mod servers;
pub mod stream;
pub mod summary;
pub mod temporary;
pub mod timings;
pub mod verify;
