//! The life of an attachment, decided. Pure: observed state + goal → steps; no clock, no I/O.
//!
//! ```text
//!            Reserve              Connect                 Mount
//!  released ────────▶ reserved ───────────▶ connected ────────────▶ mounted ──┐ Use
//!     ▲                  │                      │                      │  ▲────┘
//!     │     GiveBack     │     RemoveDevice     │   Sync, Unmount,     │
//!     └──────────────────┴──────────◀───────────┴──── LookForHolders ◀─┘
//! ```
//!
//! Downwards everything is undone in reverse, the host first and then Cinder: a LUN must be gone
//! from the host before Cinder can hand its number to another. Each state is what the journal and
//! the kernel show, so a plan that was interrupted anywhere is simply planned again.

use crate::host::filesystem::probe::{BlankProof, Contents, Filesystem};

use super::metadata::FormatState;

/// What is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    /// The volume is mounted here.
    Mounted,
    /// Nothing of it is held here.
    Released,
}

/// What was seen of one volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// What Cinder says. Not asked for a release.
    pub cloud: Option<CloudState>,
    /// The journal knows of an attachment, or of one in the making.
    pub attachment: bool,
    /// The journal knows of a device.
    pub device: bool,
    /// What the journal and the kernel say of the mount.
    pub mount: MountState,
    /// Somebody uses the mount: a reference, or another mount namespace that holds it.
    pub used: bool,
}

/// What Cinder says of a volume, as far as it decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CloudState {
    /// Free to take.
    Available,
    /// On its way to `available`, by itself: creating, downloading, extending.
    Settling,
    /// Somebody else has it, or is about to.
    Elsewhere,
    /// It will not become available by waiting; says why.
    Unusable(String),
}

/// What the journal and the kernel say of the mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MountState {
    /// The journal knows of none.
    None,
    /// The journal knows of one, and the kernel doesn't.
    Gone,
    /// Mounted, every step finished, device running, filesystem writable as it should be.
    Healthy,
    /// As healthy, but the device waits for its session with the target to come back.
    Stalled,
    /// Mounted, but its device is dead, the kernel stopped the filesystem, or the Mount was
    /// interrupted before its end.
    Broken,
}

/// One step of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// It is mounted: count the user, no more.
    Use,
    /// It is mounted: wait for its device.
    WaitForDevice,
    /// Wait for Cinder to finish what it does.
    WaitUntilSettled,
    /// Wait for another host to let go.
    WaitForRelease,
    /// Take the volume in Cinder: the compare-and-swap.
    Reserve,
    /// Export it to this host and connect the device.
    Connect,
    /// Check what is on it, format or repair, and mount.
    Mount,
    /// Write everything out.
    Sync,
    /// Unmount, never lazily.
    Unmount,
    /// Look whether another mount namespace still has it.
    LookForHolders,
    /// Flush and remove the device, log out.
    RemoveDevice,
    /// Give attachment or reservation back to Cinder.
    GiveBack,
}

/// The steps from here to the goal, or why there is no way.
pub fn plan(observed: &Observed, goal: Goal) -> Result<Vec<Step>, String> {
    match goal {
        Goal::Released => release(observed),
        Goal::Mounted => match observed.mount {
            MountState::Healthy => Ok(vec![Step::Use]),
            MountState::Stalled => Ok(vec![Step::WaitForDevice]),
            MountState::Broken if observed.used => {
                Err("it is mounted here, but its device or filesystem has failed, and a container \
                 still uses it: stop the containers that use it, then try again"
                    .to_owned())
            }
            _ if observed.has_liabilities() => release(observed),
            _ => attach(observed),
        },
    }
}

fn attach(observed: &Observed) -> Result<Vec<Step>, String> {
    match &observed.cloud {
        Some(CloudState::Available) => Ok(vec![Step::Reserve, Step::Connect, Step::Mount]),
        Some(CloudState::Settling) => Ok(vec![Step::WaitUntilSettled]),
        Some(CloudState::Elsewhere) => Ok(vec![Step::WaitForRelease]),
        Some(CloudState::Unusable(why)) => Err(why.clone()),
        None => Err("its state in Cinder is not known".to_owned()),
    }
}

fn release(observed: &Observed) -> Result<Vec<Step>, String> {
    let mut steps = Vec::new();
    match observed.mount {
        MountState::Healthy | MountState::Stalled | MountState::Broken if observed.used => {
            return Err("it is mounted here and in use".to_owned());
        }
        MountState::Healthy | MountState::Stalled | MountState::Broken => {
            steps.extend([Step::Sync, Step::Unmount, Step::LookForHolders]);
        }
        MountState::Gone => steps.push(Step::LookForHolders),
        MountState::None => {}
    }
    if observed.device {
        steps.push(Step::RemoveDevice);
    }
    if observed.attachment {
        steps.push(Step::GiveBack);
    }
    Ok(steps)
}

impl Observed {
    fn has_liabilities(&self) -> bool {
        self.attachment || self.device || self.mount != MountState::None
    }
}

/// Where a volume comes from, as far as formatting it is concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Provenance {
    /// The format state in its metadata.
    pub state: Option<FormatState>,
    /// Made from a snapshot, image, backup or volume, or bootable: it has data by nature.
    pub has_source: bool,
    /// This host's journal began mkfs with this UUID and knows of no mount since.
    pub begun_here: Option<uuid::Uuid>,
    /// Attached read-only.
    pub read_only: bool,
    /// `FormatForeign`.
    pub format_foreign: bool,
    /// `"NewVolumeBlocks": "dirty"`.
    pub dirty_blocks: bool,
}

/// What to do with a device's contents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Preparation {
    /// Mount what is there.
    Mount(Filesystem),
    /// Make a filesystem, if the device can be proven blank.
    Format(BlankProof),
    /// Our own mkfs was interrupted: wipe and make it again.
    FormatAgain,
}

/// Decides what to do with a device; a refusal says what was found and what to do. `name` is for
/// the commands that it names.
pub fn prepare(contents: &Contents, from: &Provenance, name: &str) -> Result<Preparation, String> {
    use FormatState::{Formatted, Formatting, Unformatted};
    let interrupted_here =
        matches!(from.state, Some(Formatting(uuid)) if from.begun_here == Some(uuid));
    match (contents, from.state) {
        (Contents::NoSignature, Some(Formatting(_))) if interrupted_here => {
            writable(from).map(|()| Preparation::FormatAgain)
        }
        (Contents::Filesystem(fs), Some(Formatting(uuid)))
            if interrupted_here && fs.uuid == uuid =>
        {
            writable(from).map(|()| Preparation::FormatAgain)
        }
        (Contents::Unfinished { uuid: found, .. }, Some(Formatting(uuid)))
            if interrupted_here && *found == uuid =>
        {
            writable(from).map(|()| Preparation::FormatAgain)
        }
        (_, Some(Formatting(_))) => Err(format!(
            "another host began to format it and did not finish: mount it there, or erase it with \
             \"cinder-docker-driver format {name}\""
        )),
        (Contents::Filesystem(fs), Some(Formatted(uuid))) if fs.uuid == uuid => {
            Ok(Preparation::Mount(fs.clone()))
        }
        (Contents::Filesystem(fs), Some(Formatted(uuid))) => Err(format!(
            "the device holds an {} filesystem with UUID {}, but the volume was formatted with \
             UUID {uuid}: this may be another volume's device. If you changed the UUID yourself, \
             accept it with \"cinder-docker-driver accept-uuid {name}\"",
            fs.fs_type, fs.uuid
        )),
        (Contents::Filesystem(fs), Some(Unformatted)) => Err(format!(
            "it was created blank and never formatted, but holds an {} filesystem with UUID {}: \
             old blocks of the storage, or another machine's work. Use it as it is with \
             \"cinder-docker-driver accept-uuid {name}\", or erase it with \"cinder-docker-driver \
             format {name}\"",
            fs.fs_type, fs.uuid
        )),
        (Contents::Filesystem(fs), None) => Ok(Preparation::Mount(fs.clone())),
        (Contents::NoSignature, Some(Formatted(uuid))) => Err(format!(
            "it was formatted with UUID {uuid}, but the device holds no filesystem: it may be \
             damaged, or another volume's device. Nothing was written to it"
        )),
        (Contents::NoSignature, Some(Unformatted)) => writable(from).map(|()| {
            Preparation::Format(if from.dirty_blocks {
                BlankProof::OursDirty
            } else {
                BlankProof::Ours
            })
        }),
        (Contents::NoSignature, None) if from.has_source => Err(format!(
            "it was made from a snapshot, image, backup or other volume, or is bootable, but no \
             filesystem was found on it; it is not formatted. If it is to be erased: \"cinder-docker-driver \
             format {name}\""
        )),
        (Contents::NoSignature, None) if !from.format_foreign => Err(format!(
            "it was not made by this driver and holds no filesystem; FormatForeign is off, so it \
             is not formatted. To format it: \"cinder-docker-driver format {name}\""
        )),
        (Contents::NoSignature, None) => {
            writable(from).map(|()| Preparation::Format(BlankProof::Foreign))
        }
        (Contents::Partitions(partitions), _) => Err(format!(
            "it holds a partition table with {} partitions, none of which can be chosen",
            partitions.len()
        )),
        (Contents::Unfinished { what, .. } | Contents::Other(what), _) => Err(format!(
            "the device holds {what}, which cannot be mounted and is not overwritten. If it is to \
             be erased: \"cinder-docker-driver format {name}\""
        )),
    }
}

fn writable(from: &Provenance) -> Result<(), String> {
    if from.read_only {
        Err("it holds no filesystem and is attached read-only, so it cannot be formatted"
            .to_owned())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;
    use crate::host::filesystem::probe::FsType;

    fn cloud() -> impl Strategy<Value = Option<CloudState>> {
        prop_oneof![
            Just(None),
            Just(Some(CloudState::Available)),
            Just(Some(CloudState::Settling)),
            Just(Some(CloudState::Elsewhere)),
            Just(Some(CloudState::Unusable("error".into()))),
        ]
    }

    prop_compose! {
        fn observed()(
            cloud in cloud(),
            attachment: bool,
            device: bool,
            mount in prop_oneof![
                Just(MountState::None), Just(MountState::Gone),
                Just(MountState::Healthy), Just(MountState::Stalled), Just(MountState::Broken),
            ],
            used: bool,
        ) -> Observed {
            Observed { cloud, attachment, device, mount, used }
        }
    }

    /// What a step does to the world.
    fn apply(world: &mut Observed, step: Step) {
        match step {
            Step::Use | Step::Sync => {}
            Step::WaitForDevice => {
                assert_eq!(world.mount, MountState::Stalled);
                world.mount = if world.used { MountState::Healthy } else { MountState::Broken };
            }
            Step::WaitUntilSettled | Step::WaitForRelease => {
                world.cloud = Some(CloudState::Available);
            }
            Step::Reserve => {
                assert_eq!(world.cloud, Some(CloudState::Available), "one writer");
                assert!(!world.attachment, "what we hold is never reserved again");
                world.attachment = true;
                world.cloud = Some(CloudState::Elsewhere);
            }
            Step::Connect => {
                assert!(world.attachment, "nothing is connected without a reservation");
                world.device = true;
            }
            Step::Mount => {
                assert!(world.device && world.attachment);
                world.mount = MountState::Healthy;
            }
            Step::Unmount => {
                assert!(!world.used, "nothing in use is unmounted");
                world.mount = MountState::Gone;
            }
            Step::LookForHolders => world.mount = MountState::None,
            Step::RemoveDevice => {
                assert_eq!(world.mount, MountState::None, "no device goes below a mount");
                world.device = false;
            }
            Step::GiveBack => {
                assert!(!world.device, "the host lets go before Cinder does");
                world.attachment = false;
                if world.cloud.is_some() {
                    world.cloud = Some(CloudState::Available);
                }
            }
        }
    }

    proptest! {
        #[test]
        fn every_plan_reaches_its_goal_from_wherever_it_was_interrupted(
            start in observed(), mounted: bool, stops in prop::collection::vec(0usize..6, 0..6),
        ) {
            let goal = if mounted { Goal::Mounted } else { Goal::Released };
            let mut world = start;
            let mut stops = stops.into_iter();
            for _ in 0..20 {
                let Ok(steps) = plan(&world, goal) else { return Ok(()) };
                if steps.is_empty() || steps == [Step::Use] {
                    prop_assert_eq!(goal == Goal::Mounted, world.mount == MountState::Healthy);
                    if goal == Goal::Released {
                        prop_assert!(!world.has_liabilities());
                    }
                    return Ok(());
                }
                // The daemon is killed after this many steps, and plans again.
                let run = stops.next().unwrap_or(steps.len()).min(steps.len());
                for step in &steps[..run] {
                    apply(&mut world, *step);
                }
            }
            prop_assert!(false, "it never ends: {:?}", world);
        }

        #[test]
        fn nothing_that_may_hold_data_is_ever_formatted(
            contents in contents(), from in provenance(),
        ) {
            let Ok(preparation) = prepare(&contents, &from, "v") else { return Ok(()) };
            match preparation {
                Preparation::Mount(fs) => {
                    prop_assert_eq!(&contents, &Contents::Filesystem(fs.clone()));
                    if let Some(FormatState::Formatted(uuid)) = from.state {
                        prop_assert_eq!(fs.uuid, uuid);
                    }
                }
                Preparation::Format(proof) => {
                    prop_assert_eq!(&contents, &Contents::NoSignature);
                    prop_assert!(!from.read_only);
                    match proof {
                        BlankProof::Foreign => {
                            prop_assert!(from.state.is_none() && !from.has_source);
                            prop_assert!(from.format_foreign);
                        }
                        _ => prop_assert_eq!(from.state, Some(FormatState::Unformatted)),
                    }
                }
                Preparation::FormatAgain => {
                    let Some(FormatState::Formatting(uuid)) = from.state else {
                        return Err(TestCaseError::fail("only what is being formatted"));
                    };
                    prop_assert_eq!(from.begun_here, Some(uuid));
                    prop_assert!(!from.read_only);
                    match &contents {
                        Contents::Filesystem(fs) => prop_assert_eq!(fs.uuid, uuid),
                        Contents::Unfinished { uuid: found, .. } => prop_assert_eq!(*found, uuid),
                        contents => prop_assert_eq!(contents, &Contents::NoSignature),
                    }
                }
            }
        }
    }

    fn a_uuid() -> impl Strategy<Value = Uuid> {
        (1u128..4).prop_map(Uuid::from_u128)
    }

    fn contents() -> impl Strategy<Value = Contents> {
        prop_oneof![
            Just(Contents::NoSignature),
            Just(Contents::Other("a LUKS container".into())),
            Just(Contents::Partitions(Vec::new())),
            a_uuid().prop_map(|uuid| Contents::Unfinished { what: "a half".into(), uuid }),
            a_uuid().prop_map(|uuid| Contents::Filesystem(Filesystem {
                fs_type: FsType::Ext4,
                mount_type: "ext4",
                uuid,
                label: String::new(),
                size: 1 << 30,
                needs_check: false,
            })),
        ]
    }

    prop_compose! {
        fn provenance()(
            state in prop_oneof![
                Just(None),
                Just(Some(FormatState::Unformatted)),
                a_uuid().prop_map(|uuid| Some(FormatState::Formatting(uuid))),
                a_uuid().prop_map(|uuid| Some(FormatState::Formatted(uuid))),
            ],
            has_source: bool,
            begun_here in prop::option::of(a_uuid()),
            read_only: bool,
            format_foreign: bool,
            dirty_blocks: bool,
        ) -> Provenance {
            Provenance { state, has_source, begun_here, read_only, format_foreign, dirty_blocks }
        }
    }
}
