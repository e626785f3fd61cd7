-- What consumer.py writes, for PostgreSQL and SQLite alike. All times are ms UTC.

-- Each message of data or backfill. One that was split to fit the broker's packets has several parts.
CREATE TABLE batch (
  gateway text, device text, stream text, seq bigint, part int, parts int,
  PRIMARY KEY (gateway, device, stream, seq, part, parts)
);

-- n: the how manieth value of its tag in the batch, from 0. v: numbers, and bits as 0 and 1.
-- s: text, and integers beyond 2^53. Both are null unless q is good or uncertain.
CREATE TABLE reading (
  gateway text, device text, stream text, seq bigint, tag text, n int,
  t bigint, v double precision, s text, q text,
  PRIMARY KEY (gateway, device, stream, seq, tag, n)
);
CREATE INDEX reading_by_time ON reading (gateway, device, tag, t);

-- What gateways said: of the batches first to last, what is not here by now will not come.
CREATE TABLE gap (
  gateway text, device text, stream text, first bigint, last bigint, reason text,
  PRIMARY KEY (gateway, device, stream, first, last)
);

CREATE TABLE gateway (gateway text PRIMARY KEY, boot text, status text, ts bigint);

-- Batches that are not here, whole, though later ones are: late, or lost.
CREATE VIEW missing AS
SELECT gateway, device, stream, first, last FROM (
  SELECT gateway, device, stream, seq - 1 AS last,
         1 + lag(seq, 1, 0) OVER (PARTITION BY gateway, device, stream ORDER BY seq) AS first
  FROM (
    SELECT DISTINCT gateway, device, stream, seq FROM batch
    GROUP BY gateway, device, stream, seq, parts HAVING count(*) = parts
  ) AS whole
) AS holes
WHERE first <= last;

-- The part of `missing` that will not come, and why.
CREATE VIEW lost AS
SELECT missing.gateway, missing.device, missing.stream,
       CASE WHEN gap.first > missing.first THEN gap.first ELSE missing.first END AS first,
       CASE WHEN gap.last < missing.last THEN gap.last ELSE missing.last END AS last,
       reason
FROM missing JOIN gap
  ON gap.gateway = missing.gateway AND gap.device = missing.device AND gap.stream = missing.stream
 AND gap.first <= missing.last AND gap.last >= missing.first;
