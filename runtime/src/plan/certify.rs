//! Proves that the communication of a plan matches on every rank and cannot deadlock.
//!
//! Every rank's program is executed abstractly: a collective waits for all members of its group, a
//! receive waits for its send (sends are buffered). If all ranks reach their end, no order of arrival can
//! block them, because each group sees one sequence only.

use std::collections::{BTreeMap, VecDeque};

use super::{Call, Certificate, GroupCertificate, Mapping, Stage};
use crate::op::Op;

/// Why a plan cannot be executed by its ranks together. Always a defect of whoever made the plan.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// Two ranks of a group would do different things.
    #[error("rank {rank}, position {position} of group {group}: expected {expected}, got {got}")]
    Mismatch {
        /// The rank that differs.
        rank: usize,
        /// The group.
        group: String,
        /// Position in the group's sequence.
        position: usize,
        /// What the other members do.
        expected: String,
        /// What this rank does.
        got: String,
    },
    /// The ranks wait for each other.
    #[error("deadlock: {0}")]
    Deadlock(String),
    /// Something is sent that nobody receives.
    #[error("rank {from} sends tag {tag} to rank {to}, which never receives it")]
    Unreceived {
        /// Sender.
        from: usize,
        /// Receiver.
        to: usize,
        /// Its tag.
        tag: i64,
    },
    /// A transfer names a stage that does not exist.
    #[error("stage {stage}: step {step} transfers to or from stage {peer}, which does not exist")]
    BadPeer {
        /// The stage.
        stage: usize,
        /// The step.
        step: usize,
        /// The stage that it names.
        peer: i64,
    },
}

/// Whether an operator communicates within the group of its mesh axis.
pub fn is_collective(op: &Op) -> bool {
    matches!(op, Op::AllReduce { .. } | Op::AllGather { .. }) || op.norm().is_some_and(|n| n.axis().is_some())
}

/// Name of the tensor group of a stage.
pub fn tensor_group(stage: usize) -> String {
    format!("tp{stage}")
}

/// Name of the pair that transfers between two stages in one column.
pub fn transfer_group(from: usize, to: usize, column: usize) -> String {
    format!("pp{from}-{to}.{column}")
}

/// Derives the certificate of a plan's stages.
pub fn certify(mapping: &Mapping, stages: &[Stage]) -> Result<Certificate, CertificateError> {
    let world = mapping.world();
    let mut groups: BTreeMap<String, GroupCertificate> = BTreeMap::new();
    // Position of each rank in its program, and in each group's sequence.
    let mut at = vec![0usize; world];
    let mut done_in_group: BTreeMap<(String, usize), usize> = BTreeMap::new();
    let mut in_flight: BTreeMap<(usize, usize), VecDeque<(i64, Call)>> = BTreeMap::new();
    loop {
        let mut moved = false;
        for rank in 0..world {
            let (stage_idx, column) = (rank / mapping.tp, rank % mapping.tp);
            let stage = &stages[stage_idx];
            while let Some(step) = stage.steps.get(at[rank]) {
                let call = |name: &str, v: super::ValueId| {
                    let ty = &stage.value(v).ty;
                    Call { op: name.to_owned(), dtype: ty.dtype, shape: ty.shape.clone() }
                };
                let peer = |p: i64| {
                    usize::try_from(p)
                        .ok()
                        .filter(|&p| p < mapping.pp && p != stage_idx)
                        .ok_or(CertificateError::BadPeer { stage: stage_idx, step: at[rank], peer: p })
                };
                match &step.op {
                    op if is_collective(op) => {
                        let name = tensor_group(stage_idx);
                        let got = call(op.name(), step.inputs[0]);
                        let seen = done_in_group.entry((name.clone(), rank)).or_insert(0);
                        let members: Vec<usize> = (0..mapping.tp).map(|c| mapping.rank(stage_idx, c)).collect();
                        let g = groups.entry(name.clone()).or_insert_with(|| GroupCertificate {
                            group: name.clone(),
                            ranks: members.clone(),
                            calls: vec![],
                        });
                        if *seen == g.calls.len() {
                            g.calls.push(got);
                        } else if g.calls[*seen] != got {
                            return Err(CertificateError::Mismatch {
                                rank,
                                group: name,
                                position: *seen,
                                expected: g.calls[*seen].to_string(),
                                got: got.to_string(),
                            });
                        }
                        // Wait until every member has arrived at this call.
                        let position = *seen;
                        let arrived = members.iter().all(|&m| {
                            done_in_group.get(&(name.clone(), m)).is_some_and(|&n| n > position)
                                || stages[stage_idx].steps.get(at[m]).is_some_and(|s| is_collective(&s.op))
                                    && done_in_group.get(&(name.clone(), m)).copied().unwrap_or(0) == position
                        });
                        if !arrived {
                            break;
                        }
                        *done_in_group.entry((name, rank)).or_insert(0) += 1;
                    }
                    Op::Send { stage: to, tag } => {
                        let to = peer(*to)?;
                        let target = mapping.rank(to, column);
                        let c = call("send", step.inputs[0]);
                        let name = transfer_group(stage_idx, to, column);
                        groups
                            .entry(name.clone())
                            .or_insert_with(|| GroupCertificate {
                                group: name,
                                ranks: vec![rank, target],
                                calls: vec![],
                            })
                            .calls
                            .push(c.clone());
                        in_flight.entry((rank, target)).or_default().push_back((*tag, c));
                    }
                    Op::Recv { stage: from, tag } => {
                        let from = peer(*from)?;
                        let source = mapping.rank(from, column);
                        let Some((sent, c)) = in_flight.entry((source, rank)).or_default().pop_front() else { break };
                        let got = step.outputs.first().copied().flatten().map(|v| call("send", v));
                        if sent != *tag || got.as_ref() != Some(&c) {
                            return Err(CertificateError::Mismatch {
                                rank,
                                group: transfer_group(from, stage_idx, column),
                                position: at[rank],
                                expected: format!("tag {sent}, {c}"),
                                got: format!(
                                    "tag {tag}, {}",
                                    got.map_or_else(|| "nothing".to_owned(), |c| c.to_string())
                                ),
                            });
                        }
                    }
                    _ => {}
                }
                at[rank] += 1;
                moved = true;
            }
        }
        if !moved {
            break;
        }
    }
    let blocked: Vec<String> = (0..world)
        .filter_map(|r| {
            let step = stages[r / mapping.tp].steps.get(at[r])?;
            Some(format!("rank {r} waits at step {} ({})", at[r], step.op.name()))
        })
        .collect();
    if !blocked.is_empty() {
        return Err(CertificateError::Deadlock(blocked.join("; ")));
    }
    for (&(from, to), queue) in &in_flight {
        if let Some((tag, _)) = queue.front() {
            return Err(CertificateError::Unreceived { from, to, tag: *tag });
        }
    }
    Ok(Certificate { groups: groups.into_values().collect() })
}
