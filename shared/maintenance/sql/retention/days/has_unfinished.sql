-- Whether a delivery without an end is in these blocks of the partition.
SELECT EXISTS (
    SELECT FROM deliveries@
    WHERE ctid >= ('(' || :first::int8 || ',0)')::tid AND ctid < ('(' || :end::int8 || ',0)')::tid
      AND state IN ('scheduled', 'queued', 'sending', 'retrying'))
