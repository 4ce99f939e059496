//! Inserting many rows into a table of the catalog.

use rusqlite::{CachedStatement, Statement, ToSql, Transaction};

/// Rows that one statement inserts. Each statement has fixed costs, of which the upkeep of the next id is the largest.
const ROWS: usize = 32;

/// A table, and those of its columns that get a value.
pub(super) struct Table {
    pub(super) name: &'static str,
    pub(super) columns: &'static [&'static str],
}

/// Takes the values of a row.
pub(super) struct NewRow<'s, 't> {
    statement: &'s mut Statement<'t>,
    next: usize,
}

impl NewRow<'_, '_> {
    /// Sets the values of the next columns.
    pub(super) fn set(&mut self, values: &[&dyn ToSql]) -> rusqlite::Result<()> {
        for value in values {
            self.statement.raw_bind_parameter(self.next, value)?;
            self.next += 1;
        }
        Ok(())
    }
}

impl Table {
    /// Inserts a row for each item, in order. `set` sets its values.
    pub(super) fn insert<T>(
        &self,
        transaction: &Transaction<'_>,
        items: &[T],
        set: impl Fn(&mut NewRow<'_, '_>, &T) -> rusqlite::Result<()>,
    ) -> rusqlite::Result<()> {
        let (together, rest) = items.split_at(items.len() - items.len() % ROWS);
        for (rows, items) in [(ROWS, together), (1, rest)] {
            if items.is_empty() {
                continue;
            }
            let mut statement = self.statement(transaction, rows)?;
            for items in items.chunks(rows) {
                let mut row = NewRow { statement: &mut statement, next: 1 };
                items.iter().try_for_each(|item| set(&mut row, item))?;
                statement.raw_execute()?;
            }
        }
        Ok(())
    }

    /// Inserts rows into a table that numbers them itself and never uses a number twice. Returns that of the first row;
    /// those of the others follow it.
    pub(super) fn insert_numbered<T>(
        &self,
        transaction: &Transaction<'_>,
        items: &[T],
        set: impl Fn(&mut NewRow<'_, '_>, &T) -> rusqlite::Result<()>,
    ) -> rusqlite::Result<i64> {
        self.insert(transaction, items, set)?;
        // Nothing else inserts rows during a transaction that writes.
        Ok(transaction.last_insert_rowid() - items.len() as i64 + 1)
    }

    fn statement<'t>(&self, transaction: &'t Transaction<'_>, rows: usize) -> rusqlite::Result<CachedStatement<'t>> {
        let row = format!("({})", vec!["?"; self.columns.len()].join(", "));
        let (name, columns, rows) = (self.name, self.columns.join(", "), vec![row; rows].join(", "));
        transaction.prepare_cached(&format!("INSERT INTO {name} ({columns}) VALUES {rows}"))
    }
}
