-- Where no key tells equal rows apart, a parked row's key is a digest, and a retry counts the rows that equal these values (a
-- JSON array of texts and nulls, in ASCII) in the Site DB.
ALTER TABLE twinlog.failed_rows ADD COLUMN row_values text;
