//! What many servers are together. A run goes around *observe → decide → apply → verify* until the system is verified:
//!
//! | module | does | I/O |
//! | --- | --- | --- |
//! | [`observe`] | reads what every registered server is and knows | yes |
//! | [`decide`] | says who is master, and plans what is to be changed | no |
//! | [`plan`] | is that plan: the commands, and who gets them | no |
//! | [`summary`] | says it in words | no |
//! | [`rotation`] | says what gives an ACL user another password | no |
//! | [`momentary`] | is what it changes for a moment, and what is put back | yes |
//! | [`apply`] | carries it out, everything at once that can be | yes |
//! | [`verify`] | asks every server until the system is what was planned, and is seen to work | yes |
//! | [`stream`] | sends something through the master's stream, and sees it arrive | yes |
//! | [`judge`] | says from the answers what is not as it should be | no |

pub mod apply;
pub mod decide;
pub mod handover;
pub mod judge;
pub mod members;
pub mod momentary;
pub mod observe;
pub mod plan;
pub mod rotation;
pub mod servers;
pub mod stream;
pub mod summary;
pub mod timings;
pub mod verify;
