-- The name of the partition is in dollar quotes: between apostrophes, the suffix would not be put in.
SELECT pg_relation_size($$deliveries@$$) / current_setting('block_size')::int8
