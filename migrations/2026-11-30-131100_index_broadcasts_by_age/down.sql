DROP INDEX broadcasts_age;
