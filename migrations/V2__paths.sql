-- Finding paths over all archives: every path once, however many archives hold it, and from there to its members.

PRAGMA user_version = 2;

CREATE TABLE path (
    path              BLOB    PRIMARY KEY
) STRICT, WITHOUT ROWID;

INSERT INTO path (path) SELECT DISTINCT path FROM member;

CREATE INDEX member_of_path ON member (path);

CREATE TRIGGER member_added AFTER INSERT ON member BEGIN
    INSERT OR IGNORE INTO path (path) VALUES (new.path);
END;

CREATE TRIGGER member_gone AFTER DELETE ON member
WHEN NOT EXISTS (SELECT 1 FROM member WHERE path = old.path) BEGIN
    DELETE FROM path WHERE path = old.path;
END;
