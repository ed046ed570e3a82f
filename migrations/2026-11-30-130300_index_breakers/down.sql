DROP INDEX breakers_troubled;
