//! What users change meanwhile: schedules, sources and disks.

use std::fs;

use backup_manager::archive_folder;
use backup_manager::schedule::{CatchUp, Schedule, ScheduleName};
use backup_manager::store::Watermark;
use chrono_tz::Tz;

use super::{NAMES, Simulation};
use crate::model::{Expected, Rule};

impl Simulation {
    pub(super) fn rule(&mut self) -> Rule {
        match self.random.below(4) {
            0 => Rule::Quarters,
            1 => Rule::Hourly(self.random.between(0, 59) as i64),
            2 => Rule::Daily(vec![self.random.between(0, 1_439) as i64]),
            _ => {
                let first = self.random.between(0, 700) as i64;
                Rule::Daily(vec![first, first + 1 + self.random.between(0, 700) as i64])
            }
        }
    }

    /// Returns a schedule with random options.
    pub(super) fn random_schedule(&mut self, name: &str, rule: &Rule) -> Schedule {
        let source = name.as_bytes().to_owned();
        let mut schedule = Schedule::new(ScheduleName::parse(name).unwrap(), source, rule.cadence());
        schedule.compression = self.random.pick(&["none", "gzip", "zstd"]).parse().unwrap();
        schedule.zone =
            if self.random.one_in(3) { Some(*self.random.pick(&[Tz::UTC, Tz::Asia__Kolkata])) } else { None };
        schedule.catch_up = if self.random.one_in(4) { CatchUp::Skip } else { CatchUp::Latest };
        schedule
    }

    pub(super) fn watermark(&self, schedule: &Schedule) -> Watermark {
        let now = self.now();
        Watermark { handled_until: now, next_due: schedule.next_after(self.zone, now).filter(|_| schedule.enabled) }
    }

    pub(super) fn create(&mut self, name: &str) {
        let rule = self.rule();
        let schedule = self.random_schedule(name, &rule);
        self.fill_source(name);
        let made =
            self.world.store.create_schedules(&[(schedule.clone(), self.watermark(&schedule))], self.now()).unwrap();
        self.note(format!("{name} is created: {rule:?} in {:?}", schedule.zone));
        let accounted = self.schedules.iter().find(|known| known.name == name).map_or(0, |known| known.accounted);
        self.schedules.retain(|known| known.name != name);
        self.schedules.push(Expected {
            id: made[0].0,
            name: name.to_owned(),
            rule,
            offset: schedule.zone.map(|zone| if zone == Tz::UTC { 0 } else { 330 }),
            enabled: true,
            deleted: false,
            skip: schedule.catch_up == CatchUp::Skip,
            handled: self.now().millis(),
            accounted,
        });
    }

    pub(super) fn edit(&mut self) {
        let at = self.random.below(self.schedules.len());
        if self.schedules[at].deleted {
            return;
        }
        let (name, id) = (self.schedules[at].name.clone(), self.schedules[at].id);
        let rule = if self.random.one_in(2) { self.rule() } else { self.schedules[at].rule.clone() };
        let mut edited = self.random_schedule(&name, &rule);
        edited.enabled = !self.random.one_in(3);
        let watermark = self.watermark(&edited);
        self.world.store.edit_schedules(&[(id, edited.clone(), watermark)], self.now()).unwrap();
        self.note(format!("{name} is edited: {rule:?} in {:?}, enabled: {}", edited.zone, edited.enabled));
        let handled = self.now().millis();
        let schedule = &mut self.schedules[at];
        schedule.rule = rule;
        schedule.offset = edited.zone.map(|zone| if zone == Tz::UTC { 0 } else { 330 });
        schedule.enabled = edited.enabled;
        schedule.skip = edited.catch_up == CatchUp::Skip;
        schedule.handled = handled;
    }

    pub(super) fn delete_or_create(&mut self) {
        let name = *self.random.pick(&NAMES);
        let Some(at) = self.schedules.iter().position(|schedule| schedule.name == name && !schedule.deleted) else {
            return self.create(name);
        };
        self.world.store.delete_schedule(self.schedules[at].id, self.now()).unwrap();
        self.schedules[at].deleted = true;
        self.note(format!("{name} is deleted"));
    }

    pub(super) fn fill_source(&mut self, name: &str) {
        let folder = self.world.path(name);
        fs::create_dir_all(&folder).unwrap();
        for file in 0..self.random.between(1, 4) {
            let length = self.random.below(5_000);
            fs::write(folder.join(format!("file {file}")), vec![self.random.next() as u8; length]).unwrap();
        }
    }

    pub(super) fn change_source(&mut self) {
        let name = *self.random.pick(&NAMES);
        let folder = self.world.path(name);
        match self.random.below(4) {
            0 if folder.exists() => fs::remove_dir_all(&folder).unwrap(),
            1 if folder.exists() => {
                fs::remove_dir_all(&folder).unwrap();
                fs::create_dir(&folder).unwrap();
            }
            _ => self.fill_source(name),
        }
        self.note(format!("the source of {name} changes"));
    }

    /// Deletes an archive as far as one of the steps, and stops there.
    pub(super) fn delete_archive(&mut self) {
        let archives = self.world.store.archives(None).unwrap();
        if archives.is_empty() || !self.mounted {
            return;
        }
        let archive = self.random.pick(&archives).clone();
        self.note(format!("the archive @{} is being deleted", archive.run));
        self.world.store.mark_deleting(&[archive.run], &[]).unwrap();
        match self.random.below(3) {
            0 => drop(archive_folder::finish_deletions(&self.world.home, &self.world.store).unwrap()),
            1 => fs::remove_file(self.world.home.backups().join(&archive.file_name)).unwrap(),
            _ => (),
        }
    }

    pub(super) fn mount(&mut self) {
        let (here, away) = (self.world.path("backups"), self.world.path("away"));
        if self.mounted && self.world.store.archives(None).unwrap().is_empty() {
            return;
        }
        if self.mounted {
            fs::rename(&here, &away).unwrap();
        } else {
            assert!(!here.exists(), "something was written where the disk was not mounted (I9)");
            fs::rename(&away, &here).unwrap();
        }
        self.mounted = !self.mounted;
        self.note(format!("the archive folder is mounted: {}", self.mounted));
    }
}
